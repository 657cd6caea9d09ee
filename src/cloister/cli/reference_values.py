"""``reference-values``: what a workload and its platform should measure as, computed and signed, or read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from ..client import operations
from ..client.times import parse_day
from ..errors import Misuse
from .options import Json, read_file
from .terminal import columns, note, result

__all__ = ["reference_values"]

reference_values = typer.Typer(
    no_args_is_help=True, help="Reference values: compute and sign them as a CoRIM, or read somebody else's."
)

_MOST = 1 << 20
Several = list[str] | None


@reference_values.command("compute")
def compute(
    name: Annotated[str, typer.Option("--name", help="What these values are called, for example a release.")],
    signer: Annotated[str, typer.Option("--signer", help="Who signs, in words.")],
    key: Annotated[Path, typer.Option("--key", help="The signer's key file; 'cloister measurement key' makes one.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the CoRIM; an existing file is replaced.")],
    image: Annotated[Path | None, typer.Option("--image", help="The workload's image, or its manifest.")] = None,
    measured: Annotated[Several, typer.Option("--measurement", help="A workload's measurement; several times.")] = None,
    agent: Annotated[Several, typer.Option("--agent", help="A node agent's digest; several times.")] = None,
    platform: Annotated[str | None, typer.Option("--platform", help="snp, tdx or tpm.")] = None,
    firmware: Annotated[Path | None, typer.Option("--firmware", help="OVMF or TDVF, as the guest gets it.")] = None,
    kernel: Annotated[Path | None, typer.Option("--kernel", help="A kernel that is started directly (snp).")] = None,
    initrd: Annotated[Path | None, typer.Option("--initrd", help="Its initrd (snp).")] = None,
    cmdline: Annotated[Path | None, typer.Option("--cmdline", help="A file with its command line (snp).")] = None,
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, max=512, help="Virtual CPUs (snp).")] = 1,
    cpu: Annotated[str, typer.Option("--cpu", help="Their type, as QEMU calls it (snp).")] = "EPYC-v4",
    hypervisor: Annotated[str, typer.Option("--hypervisor", help="qemu, ec2 or gce (snp).")] = "qemu",
    two_passes: Annotated[
        bool, typer.Option("--two-passes", help="The hypervisor adds a section's pages before it measures any (tdx).")
    ] = False,
    register: Annotated[
        Several, typer.Option("--register", help="NAME=HEX, such as rtmr0 or pcr7, read on a machine; several times.")
    ] = None,
    least: Annotated[Several, typer.Option("--least", help="NAME=NUMBER, the lowest version; several times.")] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Until when they count: a day such as 2027-11-20, or 90d.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute reference values and sign them. The same inputs and key give the same file."""
    guest = None
    if platform is not None:
        guest = operations.Guest(
            platform, firmware, kernel, initrd, _line(cmdline), vcpus, cpu, hypervisor, two_passes,
            dict(_pair(text) for text in register or []),
            {name: _number(value) for name, value in (_pair(text) for text in least or [])},
        )  # fmt: skip
    values, notes = operations.compute_reference_values(
        image=image, measurements=measured or [], agents=agent or [], guest=guest
    )
    end = None if until is None else parse_day(until, "--until", now=int(time.time()))
    data = operations.sign_reference_values(values, name=name, signer=signer, key=key, not_after=end)
    operations.write_file(out, data)
    for text in notes:
        note(text)
    rows = [(v.platform, v.name, d) for v in values for d in (v.digests or (f"at least {v.least}",))]
    document = {
        "file": str(out),
        "notes": notes,
        "values": [
            {"digests": list(v.digests), "least": v.least, "name": v.name, "platform": v.platform} for v in values
        ],
    }
    result(document, columns(rows, full=True), as_json=as_json)


def _line(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return read_file(path).decode("utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise Misuse("reference.cmdline", f"The file {path} is not a command line in UTF-8.") from None


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise Misuse("reference.pair", "Give it as NAME=VALUE.")
    return name, value


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Misuse("reference.pair", "A lowest version is a whole number.")
    return int(text)


@reference_values.command("read")
def read(
    file: Annotated[Path, typer.Argument(help="A signed CoRIM.")],
    key: Annotated[
        list[Path], typer.Option("--key", help="A file with a public key that may have signed; several times.")
    ],
    vendor: Annotated[bool, typer.Option("--vendor", help="It is a vendor's, not of Cloister's own profile.")] = False,
    profile: Annotated[
        Several, typer.Option("--profile", help="A vendor's profile that you know; several times.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Write a policy here that asks for these values.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check who signed reference values, and show them; or make a policy of them, to look at and set."""
    found = operations.read_reference_values(
        read_file(file, limit=_MOST), [read_file(path) for path in key], vendor=vendor, profiles=profile or []
    )
    if policy is not None:
        operations.write_file(policy, json.dumps(found["policy"], indent=2, sort_keys=True).encode() + b"\n")
    rows = [
        (v["platform"], v["name"], digest)
        for v in found["values"]
        for digest in (v["digests"] or [f"at least {v['least']}"])
    ]
    result(found, [f"{found['name']}, signed by {found['signer']}", *columns(rows, full=True)], as_json=as_json)
