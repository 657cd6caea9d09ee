"""Are a GPU's measurements those that NVIDIA published for its driver and its VBIOS? A pure function that raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...errors import Untrusted
from .rim import Golden, Manifest
from .spdm import MIN_SVN, Report

__all__ = ["compare", "mismatches"]

_NVDEC0_INDEX: Final = 35
"""The first video decoder's firmware: it is measured only where that decoder is enabled."""
_SVN_SIZE: Final = 2


def compare(report: Report, manifests: Sequence[Manifest]) -> list[int]:
    """Return the indexes that were compared, if every active value of every manifest is the report's.

    A value may be any of the alternatives that its manifest lists. Measurements that no manifest names are signed, but
    compared with nothing. Raises Untrusted: ``nvidia.manifest-empty`` for a manifest that names nothing,
    ``nvidia.manifest-conflict`` for two that name the same, ``nvidia.measurement`` for a value that isn't listed,
    ``nvidia.security-version`` for firmware that is too old.
    """
    golden, least = _merged(manifests)
    wrong = mismatches(report, golden)
    if wrong:
        raise Untrusted(
            "nvidia.measurement",
            "A GPU runs other firmware or another configuration than its manifests list; update or reset it, and "
            "switch its developer tools off.",
            indexes=", ".join(str(index) for index in wrong[:32]),
        )
    for number, lowest in sorted(least.items()):
        field = report.opaque.get(number)
        # The value type keeps a field of another meaning from being read as a version.
        if field is None or field.kind != MIN_SVN or len(field.value) != _SVN_SIZE:
            raise Untrusted("nvidia.security-version", "A GPU doesn't report a security version that has a least one.")
        if int.from_bytes(field.value, "little") < lowest:
            raise Untrusted("nvidia.security-version", "A GPU's firmware is older than its manifest allows; update it.")
    return sorted(golden)


def mismatches(report: Report, golden: dict[int, Golden]) -> list[int]:
    """The indexes at which the report has none of the listed values; index 35 is skipped where nothing is measured."""
    wrong: list[int] = []
    for index, expected in sorted(golden.items()):
        if index == _NVDEC0_INDEX and report.nvdec0 is False:
            continue
        if report.measurements.get(index) not in expected.values:
            wrong.append(index)
    return wrong


def _merged(manifests: Sequence[Manifest]) -> tuple[dict[int, Golden], dict[int, int]]:
    golden: dict[int, Golden] = {}
    least: dict[int, int] = {}
    for manifest in manifests:
        # A comparison with nothing would find no difference.
        if not manifest.active:
            raise Untrusted("nvidia.manifest-empty", "A reference manifest has no active value, so it proves nothing.")
        if golden.keys() & manifest.active.keys() or least.keys() & manifest.least.keys():
            raise Untrusted("nvidia.manifest-conflict", "Two reference manifests claim the same measurement.")
        golden |= manifest.active
        least |= manifest.least
    if not golden:
        raise Untrusted("nvidia.manifest-empty", "There is no reference manifest to compare with.")
    return golden, least
