"""A software TPM with endorsement certificates, as swtpm's own tools make them: a local authority, level none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloister.crypto.x509 import Certificate, read_certificate

needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("swtpm", "swtpm_setup", "swtpm_localca")),
    reason="swtpm's tools are not installed",
)


def manufacture(folder: Path, name: str) -> Path:
    """The state folder of a new TPM in ``folder``, all under one local authority there."""
    authority, state = folder / "authority", folder / name
    for made in (authority, state):
        made.mkdir(mode=0o700, exist_ok=True)
    (folder / "localca.conf").write_text(
        f"statedir = {authority}\nsigningkey = {authority}/key.pem\nissuercert = {authority}/issuer.pem\n"
        f"certserial = {authority}/serial\n"
    )
    options = "--platform-manufacturer none\n--platform-version 1\n--platform-model none\n"
    (folder / "localca.options").write_text(options)
    (folder / "setup.conf").write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\nactive_pcr_banks = sha256\n"
    )
    arguments = ["--tpm2", "--tpmstate", str(state), "--createek", "--create-ek-cert"]
    arguments += ["--config", str(folder / "setup.conf")]
    if os.geteuid() == 0:
        arguments += ["--runas", "root"]
    done = subprocess.run(["swtpm_setup", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return state


def authorities(folder: Path) -> tuple[Certificate, Certificate]:
    """The local authority that issues, and its root."""
    made = folder / "authority"
    issuer, root = made / "issuer.pem", made / "swtpm-localca-rootca-cert.pem"
    return read_certificate(issuer.read_bytes()), read_certificate(root.read_bytes())


def soon_after(folder: Path) -> int:
    """A time at which the certificates are good: they begin when they are made, by the machine's own clock."""
    return authorities(folder)[0].not_before + 3600
