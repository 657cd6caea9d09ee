"""NVIDIA's reference integrity manifests: signed lists of the values that a driver's or a firmware's measurements have.

A TCG RIM (Reference Integrity Manifest Information Model 1.01) as an ISO/IEC 19770-2:2015 SWID tag. The signature is
checked first, and only what it covered is read. One manifest belongs to the driver, one to the VBIOS; which one a GPU
needs follows from versions and part numbers in its signed report, and NVIDIA publishes each under such an id.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ...crypto.canonical_xml import Element
from ...crypto.x509 import read_certificates
from ...crypto.xmldsig import open_signed_xml
from ...errors import Malformed, Untrusted
from ..collateral import Item, Staleness
from . import spdm
from .chain import Architecture
from .spdm import Report

__all__ = ["Golden", "Manifest", "driver_rim_id", "open_manifest", "vbios_rim_id"]

_SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_SHA384: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
_MAX_RESOURCES: Final = 512
_MAX_ALTERNATIVES: Final = 64
_MAX_SIZE: Final = 64
_LEAST: Final = "https://docs.nvidia.com/attestation/specs/latest/opaque-data.html"
_MAX_INDEX: Final = 254
_FIRST_LEAST: Final = 0x1000
"""A resource from here on is a least version for the opaque field with the number above it, not a measurement."""
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_HEX: Final = re.compile(r"([0-9a-fA-F]{2}){1,64}")
_TAG: Final = re.compile(r"[0-9A-Za-z._-]{1,128}")
_TOKEN: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")
# The one NVSwitch that attests does not report its part numbers; its BIOS manifests are published under these.
_LS10_PARTS: Final = ("5612", "0002", "890")


@dataclass(frozen=True)
class Golden:
    """What one measurement may be: ``values`` of ``size`` bytes each. ``name`` is for people."""

    index: int
    values: tuple[bytes, ...]
    size: int
    name: str


@dataclass(frozen=True)
class Manifest:
    """A verified manifest. ``version``: of the driver or the VBIOS; ``product``: the chip; ``active``: by index;
    ``least``: the least security version that an opaque field may report, by its number."""

    tag: str
    version: str
    product: str
    active: dict[int, Golden]
    least: dict[int, int]


def open_manifest(item: Item, *, roots: Collection[str], now: int, staleness: Staleness | None = None) -> Manifest:
    """The manifest in a piece of collateral (``nvidia-rim``), if its signature leads to one of ``roots``.

    A manifest is as long good as its signer's certificates, and the owner's grace longer. Raises Malformed
    (``nvidia.rim``, ``xml.*``, ``xmldsig.*``) or Untrusted (``xmldsig.*``, ``x509.*``, ``collateral.*``).
    """
    grace = (staleness or Staleness()).grace
    if item.obtained > now:
        raise Untrusted("collateral.future", "A reference manifest is from the future; check the clock.")
    above = read_certificates(item.chain) if item.chain else ()
    signed = open_signed_xml(item.data, roots=roots, now=now, above=above, grace=grace)
    root = signed.root
    if (root.namespace, root.local) != (_SWID, "SoftwareIdentity"):
        raise _bad("is no software identity")
    # A patch, or a supplement, lists only a part; taking it for the whole would compare too little.
    if any(_attribute(root, name, _TOKEN) != "false" for name in ("corpus", "patch", "supplemental")):
        raise _bad("is not a whole one")
    meta, payload = _only(root, "Meta"), _only(root, "Payload")
    active, least = _resources(payload)
    return Manifest(
        tag=_attribute(root, "tagId", _TAG),
        version=_attribute(meta, "colloquialVersion", _TOKEN),
        product=_attribute(meta, "product", _TOKEN),
        active=active,
        least=least,
    )


def driver_rim_id(report: Report, architecture: Architecture) -> str:
    """The id under which the manifest of the report's driver is published. Raises Malformed where it names none."""
    version = report.driver
    if version is None:
        # So is one that the security processor (FSP) makes by itself: it says nothing of what else runs on the GPU.
        raise Malformed(
            "nvidia.report",
            "A GPU's report names no driver, so it is not one of a running GPU; load its driver with confidential "
            "computing on, and collect the evidence through that.",
        )
    if architecture.name == "HOPPER":
        return f"NV_GPU_DRIVER_GH100_{version}"
    return f"NV_GPU_CC_DRIVER_{report.text(spdm.CHIP_INFO) or 'GB100'}_{version}"


def vbios_rim_id(report: Report, architecture: Architecture) -> str:
    """The id under which the manifest of the report's VBIOS is published. Raises Malformed where it names none."""
    version = report.vbios
    if architecture.switch:
        kind, parts = "SWITCH_BIOS", list(_LS10_PARTS)
    else:
        fields = (spdm.PROJECT, spdm.PROJECT_SKU, spdm.CHIP_SKU)
        kind, parts = "GPU_VBIOS", [report.text(number) or "" for number in fields]
    if version is None or not all(parts):
        raise Malformed("nvidia.report", "A GPU's report does not name its firmware, so it is not of a running GPU.")
    return "_".join(("NV", kind, *parts, version.replace(".", ""))).upper()


def _bad(why: str) -> Malformed:
    return Malformed("nvidia.rim", f"A reference manifest {why}; fetch it again, or a version that is understood.")


def _only(parent: Element, local: str) -> Element:
    found = [child for child in parent.elements() if (child.namespace, child.local) == (_SWID, local)]
    if len(found) != 1:
        raise _bad(f"does not have exactly one {local}")
    return found[0]


def _attribute(element: Element, name: str, form: re.Pattern[str]) -> str:
    value = element.attributes.get(("", name), "")
    if not form.fullmatch(value):
        raise _bad(f"has no usable {name}")
    return value


def _number(element: Element, name: str, high: int) -> int:
    value = int(_attribute(element, name, _NUMBER))
    if value > high:
        raise _bad(f"has a {name} that is too large")
    return value


def _resources(payload: Element) -> tuple[dict[int, Golden], dict[int, int]]:
    listed = payload.elements()
    if len(listed) > _MAX_RESOURCES:
        raise _bad("lists too much")
    seen: set[int] = set()
    active: dict[int, Golden] = {}
    least: dict[int, int] = {}
    for resource in listed:
        kind = resource.namespace, resource.local, resource.attributes.get(("", "type"))
        index = _number(resource, "index", _FIRST_LEAST + 0xFFFF)
        state = _attribute(resource, "active", _TOKEN)
        # A rule that isn't understood can't be kept, so a manifest with one accepts nothing.
        if kind != (_SWID, "Resource", "Measurement") or _MAX_INDEX < index < _FIRST_LEAST:
            raise _bad("lists something unknown")
        if index in seen or state not in ("True", "False"):
            raise _bad("lists a measurement twice, or in an unknown state")
        seen.add(index)
        if state == "False":
            continue
        if index >= _FIRST_LEAST:
            least[index - _FIRST_LEAST] = _least(resource)
        else:
            active[index] = _golden(resource, index)
    return active, least


def _least(resource: Element) -> int:
    value = resource.attributes.get((_LEAST, "minSvn"), "")
    if not _NUMBER.fullmatch(value) or int(value) > 0xFFFF:
        raise _bad("has a least version that is no number")
    return int(value)


def _golden(resource: Element, index: int) -> Golden:
    count = _number(resource, "alternatives", _MAX_ALTERNATIVES)
    size = _number(resource, "size", _MAX_SIZE)
    texts = [resource.attributes.get((_SHA384, f"Hash{i}"), "") for i in range(count)]
    hashes = sum(1 for namespace, _ in resource.attributes if namespace == _SHA384)
    if not count or hashes != count or not all(_HEX.fullmatch(text) for text in texts):
        raise _bad("has a measurement without exactly the values that it announces")
    values = tuple(bytes.fromhex(text) for text in texts)
    if any(len(value) != size for value in values):
        raise _bad("has a measurement with a value of another size than it announces")
    return Golden(index, values, size, _attribute(resource, "name", _TOKEN))
