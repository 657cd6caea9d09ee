"""TCB info: which state of microcode, firmware and TDX module a platform has, and what Intel says about that state.

Source: Intel, "SGX and TDX Provisioning Certification Service" API, "Get TCB Info" (versions 2 and 3 of the document,
with the rules for choosing a level), and "Intel TDX DCAP: Quote Generation Library and Quote Verification Library" on
relaunching. Pure: documents in, an evaluation out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ...errors import Malformed, Untrusted
from ...fields import Fields
from .documents import hex_field, time_field
from .quote import TdReport

__all__ = ["NOT_SUPPORTED", "REVOKED", "Evaluation", "Level", "Module", "TcbInfo", "evaluate", "read_tcb_info"]

REVOKED: Final = "Revoked"
NOT_SUPPORTED: Final = "NotSupported"
"""No level of the document matches: Intel says nothing about this state."""

_UP_TO_DATE, _OUT_OF_DATE, _SW = "UpToDate", "OutOfDate", "SWHardeningNeeded"
_CONFIG, _CONFIG_SW = "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"
_OUT_OF_DATE_CONFIG: Final = "OutOfDateConfigurationNeeded"
_RELAUNCH, _RELAUNCH_CONFIG = "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"
_CURRENT: Final = (_UP_TO_DATE, _SW, _CONFIG, _CONFIG_SW)
_CONFIGURE: Final = (_CONFIG, _CONFIG_SW, _OUT_OF_DATE_CONFIG)
_HARDEN: Final = (_SW, _CONFIG_SW)
_OUTDATED: Final = (_OUT_OF_DATE, _OUT_OF_DATE_CONFIG)
_PLATFORM: Final = (*_CURRENT, *_OUTDATED, REVOKED)
# Intel's own verifier reads these two more for quoting enclaves.
_COMPONENT: Final = (_UP_TO_DATE, _CONFIG, *_OUTDATED, REVOKED)
_MAX_LEVELS, _MAX_MODULES, _MAX_ADVISORIES = 256, 32, 256
_ADVISORY = re.compile(r"[A-Za-z0-9-]{1,40}")
_MODULE = re.compile(r"[Tt][Dd][Xx]_([0-9a-fA-F]{2})")


@dataclass(frozen=True)
class Level:
    """One state, by the least SVNs that reach it. ``sgx``, ``tdx``: 16 component SVNs, or none where the document has
    none; ``pcesvn`` or ``isvsvn`` is ``svn``. ``date`` is an ISO 8601 time, as Intel writes it."""

    sgx: tuple[int, ...]
    tdx: tuple[int, ...]
    svn: int
    status: str
    date: str
    advisories: tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """A TDX module's identity: signer (48 bytes), attributes and their mask (8), levels by its minor version."""

    mr_signer: bytes
    attributes: bytes
    mask: bytes
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class TcbInfo:
    """A TCB info document, read. ``tee``: sgx or tdx. ``modules`` by the TDX module's major version."""

    tee: str
    version: int
    fmspc: bytes
    pceid: bytes
    evaluation: int
    levels: tuple[Level, ...]
    module: Module | None
    modules: dict[int, Module]


@dataclass(frozen=True)
class Evaluation:
    """What all of it comes to. ``status`` is the converged one, ``date`` the oldest of the levels that took part.

    ``platform``, ``module`` (None where there is none to judge) and ``enclave`` are the statuses that it came from.
    ``running``: the converged status of what runs now, where the report tells it apart from what was launched.
    ``platform_number``, ``enclave_number``: Intel's, for the rounds of evaluation of TCB info and enclave's identity.
    """

    status: str
    date: str
    advisories: tuple[str, ...]
    platform: str
    module: str | None
    enclave: str
    platform_number: int
    enclave_number: int
    running: str | None = None

    @property
    def number(self) -> int:
        """The older round: what it knew nothing of, the evaluation as a whole doesn't know."""
        return min(self.platform_number, self.enclave_number)


def read_tcb_info(body: dict[str, Any]) -> TcbInfo:
    """From the signed object. Raises Malformed. Fields that aren't needed are not looked at: Intel adds some."""
    fields = Fields(body, "TCB info")
    version = fields.integer("version", low=2, high=3)
    tee = "SGX" if version == 2 else fields.text("id", choices=("SGX", "TDX"))
    fields.integer("tcbType", low=0, high=0)  # the only rule of comparison that there is
    tdx = tee == "TDX"
    levels = fields.items("tcbLevels", lambda value: _platform_level(value, version, tdx), limit=_MAX_LEVELS)
    if not levels:
        raise Malformed("tdx.document", "A TCB info document has no levels.")
    return TcbInfo(
        tee=tee.lower(),
        version=version,
        fmspc=hex_field(fields, "fmspc", 6),
        pceid=hex_field(fields, "pceId", 2),
        evaluation=fields.integer("tcbEvaluationDataNumber", high=2**31),
        levels=levels,
        module=_module(fields.child("tdxModule")) if tdx else None,
        modules=_modules(fields) if tdx else {},
    )


def _platform_level(value: Any, version: int, tdx: bool) -> Level:
    fields = Fields(value, "TCB level")
    tcb = fields.child("tcb")
    if version == 2:
        sgx: tuple[int, ...] = tuple(tcb.integer(f"sgxtcbcomp{n:02}svn", high=255) for n in range(1, 17))
    else:
        sgx = _components(tcb, "sgxtcbcomponents")
    found = _components(tcb, "tdxtcbcomponents") if tdx else ()
    return _level(fields, sgx, found, tcb.integer("pcesvn", high=65535), _PLATFORM)


def _components(fields: Fields, key: str) -> tuple[int, ...]:
    found = fields.items(key, lambda value: Fields(value, "TCB component").integer("svn", high=255), limit=16)
    if len(found) != 16:
        raise Malformed("tdx.document", "A TCB level does not have 16 components.")
    return found


def _level(fields: Fields, sgx: tuple[int, ...], tdx: tuple[int, ...], svn: int, words: tuple[str, ...]) -> Level:
    time_field(fields, "tcbDate")
    return Level(
        sgx=sgx,
        tdx=tdx,
        svn=svn,
        status=fields.text("tcbStatus", limit=64, choices=words),
        date=fields.text("tcbDate", limit=32),
        advisories=fields.items("advisoryIDs", _advisory, limit=_MAX_ADVISORIES, optional=True),
    )


def _advisory(value: Any) -> str:
    if not isinstance(value, str) or not _ADVISORY.fullmatch(value):
        raise Malformed("tdx.document", "A TCB level names an advisory in an unknown form.")
    return value


def read_component_levels(fields: Fields) -> tuple[Level, ...]:
    """The levels of an enclave's or a TDX module's identity: by ISVSVN; none of them speaks of hardening."""

    def read(value: Any) -> Level:
        level = Fields(value, "TCB level")
        return _level(level, (), (), level.child("tcb").integer("isvsvn", high=65535), _COMPONENT)

    levels = fields.items("tcbLevels", read, limit=_MAX_LEVELS)
    if not levels:
        raise Malformed("tdx.document", "An identity document has no levels.")
    return levels


def _module(fields: Fields, levels: Callable[[Fields], tuple[Level, ...]] = lambda _: ()) -> Module:
    return Module(
        mr_signer=hex_field(fields, "mrsigner", 48),
        attributes=hex_field(fields, "attributes", 8),
        mask=hex_field(fields, "attributesMask", 8),
        levels=levels(fields),
    )


def _modules(fields: Fields) -> dict[int, Module]:
    found: dict[int, Module] = {}
    for value in fields.items("tdxModuleIdentities", lambda value: value, limit=_MAX_MODULES, optional=True):
        entry = Fields(value, "TDX module identity")
        name = _MODULE.fullmatch(entry.text("id", limit=16))
        if name is None or int(name[1], 16) in found:
            raise Malformed("tdx.document", "A TCB info document names a TDX module twice, or in an unknown form.")
        found[int(name[1], 16)] = _module(entry, read_component_levels)
    return found


def check_module(info: TcbInfo, report: TdReport) -> None:
    """The TDX module that made the report is Intel's, in a production form: the one that the domain began on, and the
    one that runs now. Raises Untrusted ``tdx.module``."""
    for svn in (report.tee_tcb_svn, report.tee_tcb_svn2):
        if svn is None:
            continue
        module = _module_of(info, svn)
        if module is None:
            raise Untrusted("tdx.module", "Intel's TCB info does not know this major version of the TDX module.")
        masked = bytes(a & b for a, b in zip(report.seam_attributes, module.mask, strict=True))
        # SEAMATTRIBUTES must be zero (TDX module ABI); a mask can only tell which bits Intel looks at.
        if report.mr_signer_seam != module.mr_signer or masked != module.attributes or any(report.seam_attributes):
            raise Untrusted("tdx.module", "The trust domain was not reported by a production TDX module of Intel's.")


def _module_of(info: TcbInfo, tee_tcb_svn: bytes) -> Module | None:
    """Byte 1 of TEE_TCB_SVN is the module's major version; 0 is TDX 1.0, which the document describes apart."""
    return info.modules.get(tee_tcb_svn[1]) if tee_tcb_svn[1] else info.module


def evaluate(
    info: TcbInfo, *, components: bytes, pcesvn: int, report: TdReport | None, enclave: Level, enclave_number: int
) -> Evaluation:
    """What Intel says about a platform with these SGX ``components`` (16 bytes) and ``pcesvn``.

    ``report``: the trust domain's, None for SGX. ``enclave``: the level of the quoting enclave, ``enclave_number`` its
    identity's round of evaluation. A status is the worst that platform, TDX module and quoting enclave give together,
    or ``NotSupported`` where one of them has none.
    """

    def judged(tee_tcb_svn: bytes | None) -> Evaluation:
        return _evaluate(info, components, pcesvn, tee_tcb_svn, enclave, enclave_number)

    if report is None:
        return judged(None)
    launch = judged(report.tee_tcb_svn)
    if report.tee_tcb_svn2 is None:
        return launch
    # TDX 1.5 can replace its module under a running domain: the first SVN tells where the domain began, the second what
    # runs now. Either can open it, so the worse one counts. Intel's rules ask for the second only where it is better;
    # but a module that can be replaced can be replaced by a worse one.
    running = judged(report.tee_tcb_svn2)
    status = _worst((launch.status, running.status))
    if launch.status in _OUTDATED and running.status in _CURRENT:
        # A domain that began on something outdated gets to safety by being started again.
        configure = launch.status in _CONFIGURE or running.status in _CONFIGURE
        status = _RELAUNCH_CONFIG if configure else _RELAUNCH
    modules = [status for status in (launch.module, running.module) if status is not None]
    return replace(
        launch,
        status=status,
        date=min(launch.date, running.date),
        advisories=tuple(dict.fromkeys(launch.advisories + running.advisories)),
        platform=_worst((launch.platform, running.platform)),
        module=_worst(modules) if modules else None,
        running=running.status,
    )


def _evaluate(
    info: TcbInfo, components: bytes, pcesvn: int, tee_tcb_svn: bytes | None, enclave: Level, enclave_number: int
) -> Evaluation:
    # The levels stand in falling order; the first whose every SVN is reached is the platform's.
    platform = next((level for level in info.levels if _reaches(level, components, pcesvn, tee_tcb_svn)), None)
    module: Level | None = None
    missing = platform is None
    if tee_tcb_svn is not None and tee_tcb_svn[1]:
        identity = info.modules.get(tee_tcb_svn[1])
        module = find_level(() if identity is None else identity.levels, tee_tcb_svn[0])
        missing = missing or module is None
    levels = [level for level in (platform, module, enclave) if level is not None]
    return Evaluation(
        status=_worst([level.status for level in levels] + [NOT_SUPPORTED] * missing),
        date=min(level.date for level in levels),
        advisories=tuple(dict.fromkeys(a for level in levels for a in level.advisories)),
        platform=NOT_SUPPORTED if platform is None else platform.status,
        module=None if module is None else module.status,
        enclave=enclave.status,
        platform_number=info.evaluation,
        enclave_number=enclave_number,
    )


def _reaches(level: Level, components: bytes, pcesvn: int, tee_tcb_svn: bytes | None) -> bool:
    if not _at_least(components, level.sgx) or pcesvn < level.svn:
        return False
    if tee_tcb_svn is None:
        return True
    # From TDX 1.5 on, the first two bytes are the module's version, and are judged by the module's own identity.
    skipped = 2 if tee_tcb_svn[1] else 0
    return _at_least(tee_tcb_svn[skipped:], level.tdx[skipped:])


def _at_least(found: Iterable[int], needed: Sequence[int]) -> bool:
    return all(have >= need for have, need in zip(found, needed, strict=True))


def find_level(levels: Iterable[Level], svn: int) -> Level | None:
    """The first, so the highest, level that ``svn`` reaches."""
    return next((level for level in levels if svn >= level.svn), None)


def _worst(statuses: Iterable[str]) -> str:
    """What several states come to together: outdated where one is, and to be configured or hardened where one is."""
    found = set(statuses)
    for alone in (REVOKED, NOT_SUPPORTED):
        if alone in found:
            return alone
    configure, harden = not found.isdisjoint(_CONFIGURE), not found.isdisjoint(_HARDEN)
    if not found.isdisjoint(_OUTDATED):
        return _OUT_OF_DATE_CONFIG if configure else _OUT_OF_DATE
    if configure:
        return _CONFIG_SW if harden else _CONFIG
    return _SW if harden else _UP_TO_DATE
