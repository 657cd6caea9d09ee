"""Nobody is contacted who wasn't declared: the guard of the test run itself, imports, addresses in the code."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress import Egress, EgressError, target

SOURCE = Path(__file__).resolve().parents[2] / "src" / "cloister"
# Addresses from the blocks that are reserved for documentation: nobody answers there.
OUTSIDE = ("192.0.2.1", 443)

# Text that looks like an address and is an identifier: written into documents, never opened.
IDENTIFIERS = (
    "http://127.0.0.1",
    "https://127.0.0.1",
    "http://localhost",
    # Base of requests through a Unix socket: httpx wants a host, nothing resolves it.
    "http://broker",
    "http://node",
    "http://admin",
    # A name that can never resolve (RFC 2606): our own identifiers in provenance.
    "https://cloister.invalid/",
    # Words of a message that shows the form of an address.
    "https://HOST",
    # Where an owner who keeps KEKs in Azure signs in; only that driver opens it, and only its owner chooses it.
    "https://login.microsoftonline.com",
    # The same for Google Cloud: the default of its driver's option "endpoint", and the scope of its tokens.
    "https://cloudkms.googleapis.com",
    "https://www.googleapis.com/",
    # Vendors of processors and GPUs: the defaults of --fetch-collateral and "collateral fetch", and nothing else.
    "https://kdsintf.amd.com",
    "https://api.trustedservices.intel.com",
    "https://certificates.trustedservices.intel.com",
    "https://rim.attestation.nvidia.com",
    "https://ocsp.ndis.nvidia.com",
    # Namespaces and algorithms of signed XML.
    "http://standards.iso.org/iso/19770/",
    "http://www.w3.org/",
    # A kind of value in NVIDIA's manifests.
    "https://docs.nvidia.com/attestation/specs/",
    # Types and predicates of the formats that are written.
    "https://github.com/confidential-containers/kbs/errors/",
    "https://json-schema.org/draft/",
    "https://in-toto.io/",
    "https://slsa.dev/",
    "https://cyclonedx.org/",
    "http://cyclonedx.org/",
    "https://schema.ocsf.io/",
)


def test_a_refused_connection_raises_and_is_remembered(egress: Egress) -> None:
    with socket.socket() as sock, pytest.raises(EgressError, match=r"no network but loopback.*192\.0\.2\.1"):
        sock.connect(OUTSIDE)
    assert egress.take() == ["socket.connect ('192.0.2.1', 443)"]


def test_a_swallowed_refusal_is_still_remembered(egress: Egress) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.sendto(b"usage", OUTSIDE)
    except EgressError:
        swallowed = True
    finally:
        sock.close()
    assert swallowed
    assert egress.take() == ["socket.sendto ('192.0.2.1', 443)"]


def test_asking_a_name_server_is_egress_too(egress: Egress) -> None:
    with pytest.raises(EgressError, match=r"getaddrinfo 'telemetry\.example'"):
        socket.getaddrinfo("telemetry.example", 443)
    assert egress.take() == ["socket.getaddrinfo 'telemetry.example'"]


def test_loopback_and_unix_sockets_pass(egress: Egress, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "s"))
        local.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
    assert egress.take() == []


@pytest.mark.parametrize("host", ["::1", "127.0.0.53", "localhost"])
def test_what_counts_as_this_machine(host: str) -> None:
    with socket.socket() as sock:
        assert target("socket.connect", (sock, (host, 80))) is None


@pytest.mark.parametrize("host", ["0.0.0.1", "10.0.0.1", "169.254.169.254", "localhost.example", "::ffff:10.0.0.1"])
def test_what_doesnt(host: str) -> None:
    with socket.socket() as sock:
        assert target("socket.connect", (sock, (host, 80))) is not None


PROBE = """
import sys
def hook(event, args):
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}:
        print("EGRESS", event, args[1:], flush=True)
sys.addaudithook(hook)
import importlib, pkgutil, cloister
names = [m.name for m in pkgutil.walk_packages(cloister.__path__, "cloister.")]
names = [n for n in names if not n.endswith(".__main__") and ".migrations" not in n]
for name in names:
    importlib.import_module(name)
print("IMPORTED", len(names))
"""


def test_importing_every_module_contacts_nobody(tmp_path: Path) -> None:
    """Without the offline switches that the other tests set: the libraries' own habits must show here."""
    keep = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        env={**keep, "HOME": str(tmp_path)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "EGRESS" not in done.stdout
    assert re.search(r"^IMPORTED \d{2,}$", done.stdout, re.MULTILINE)


def strings(tree: ast.Module) -> Iterator[str]:
    """Every text in the code that isn't a docstring: a source named there is read by people only."""
    comments = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in comments:
            yield node.value


def test_addresses_in_the_code_are_identifiers() -> None:
    """An address that something could open has to be added here, with its reason, before it can be merged."""
    unknown = [
        f"{path.relative_to(SOURCE)}: {url}"
        for path in sorted(SOURCE.rglob("*.py"))
        for text in strings(ast.parse(path.read_text(encoding="utf-8")))
        for url in re.findall(r"\b(?:https?|wss?|ftp)://[^\s]+", text)
        if not url.startswith(IDENTIFIERS)
    ]
    assert unknown == []


def test_the_library_that_fetches_code_is_not_among_what_is_installed() -> None:
    """bitsandbytes asks a hub for kernels, which are code, as soon as the package ``kernels`` is there."""
    lock = (SOURCE.parents[1] / "requirements" / "lock.txt").read_text(encoding="utf-8")
    assert re.search(r"^bitsandbytes==", lock, re.MULTILINE)
    assert not re.search(r"^kernels==", lock, re.MULTILINE)
