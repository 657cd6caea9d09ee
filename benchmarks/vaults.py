"""How many data keys a second does a vault unwrap, with each driver that can be run here, beside its library alone?

    python -m benchmarks.vaults [--rounds 7] [--seconds 0.4]

Three sides take turns, for ``--seconds`` each: the library's own calls for that operation (``raw``), the driver, and
the whole vault over the driver, which is what a broker calls. A ratio is the median over the rounds of the vault's rate
over the library's. What the library alone does is the least that gives the key back, and less safe: for ``file`` one
AES-GCM decryption with the KEK at hand; for ``pkcs11`` a C_UnwrapKey and a C_GetAttributeValue with a KEK that is found
already; for ``tpm`` load, policy session and unseal without encrypting the bus.

Drivers of services are listed as absent: a rate against a double of a service would say nothing about the service.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.keys import DriverConfig, Vault, create_vault

from . import result_line, say

NAME = "vaults"
BASELINE = "the library's own calls for the same operation: cryptography, python-pkcs11 on SoftHSM, tpm2-pytss on swtpm"
CREDENTIAL = b"benchmark credential"
DEK = bytes(range(32))
DIGEST = bytes(32)
PCRS = "0,7"
SERVICES = ("transit", "aws", "gcp", "azure")
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@dataclass(frozen=True)
class Contender:
    """One driver, and how to make the raw library's unwrapping once its vault is open: a PKCS#11 module is initialized
    once in a process, and by the driver."""

    name: str
    config: DriverConfig
    make_raw: Callable[[], Callable[[], bytes]]


def rate(call: Callable[[], bytes], seconds: float) -> float:
    """Calls a second. Each result is looked at: an unwrapping that gives another key would be no unwrapping."""
    done, start = 0, time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        if call() != DEK:
            raise ValueError("another key came back")
        done += 1
    return done / (now - start)


def compare(contender: Contender, folder: Path, rounds: int, seconds: float) -> dict[str, float]:
    with create_vault(folder / "vault.json", CREDENTIAL, "bench", driver=contender.config) as vault:
        through = _through_driver(vault)
        wrapped = vault.wrap(DEK, DIGEST)
        sides = {"raw": contender.make_raw(), "driver": through, "vault": lambda: vault.unwrap(wrapped, DIGEST)}
        for side in sides.values():
            rate(side, seconds / 4)  # warm
        seen: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                seen[name].append(rate(side, seconds))
    rates = {name: median(values) for name, values in seen.items()}
    name = contender.name
    say(f"{name}: " + ", ".join(f"{side} {value:,.0f}/s" for side, value in rates.items()))
    pairs = zip(seen["vault"], seen["raw"], strict=True)
    return {
        f"{name}_ratio": median(vault / raw for vault, raw in pairs),
        f"{name}_vault_per_s": rates["vault"],
        f"{name}_driver_per_s": rates["driver"],
        f"{name}_raw_per_s": rates["raw"],
    }


def _through_driver(vault: Vault) -> Callable[[], bytes]:
    held = vault._held()
    driver, handle = held.driver, held.document.keks[-1].handle
    box = driver.wrap(handle, DEK, b"context")
    return lambda: driver.unwrap(handle, box, b"context")


@contextmanager
def file_side(_: Path) -> Iterator[list[Contender]]:
    kek, nonce = os.urandom(32), os.urandom(12)
    box = AESGCM(kek).encrypt(nonce, DEK, b"context")
    yield [Contender("file", DriverConfig(), lambda: lambda: AESGCM(kek).decrypt(nonce, box, b"context"))]


@contextmanager
def pkcs11_side(folder: Path) -> Iterator[list[Contender]]:
    import pkcs11

    from tests.softhsm import SoftHsm

    with SoftHsm(folder / "softhsm") as softhsm:
        softhsm.create("bench", CREDENTIAL)

        def session() -> Any:
            """Logged in already: that is the process's state. It ends when the vault is closed."""
            return pkcs11.lib(os.path.realpath(SOFTHSM)).get_token(token_label="bench").open()

        options = {"module": str(SOFTHSM), "token": "bench"}
        wrapping = DriverConfig("pkcs11", {**options, "mechanism": "aes-kwp"})
        agreeing = DriverConfig("pkcs11", {**options, "mechanism": "ecdh"})
        yield [
            Contender("pkcs11", wrapping, lambda: _raw_pkcs11(session())),
            Contender("pkcs11_ecdh", agreeing, lambda: _raw_ecdh(session())),
        ]


_READABLE: dict[str, Any] = {"TOKEN": False, "PRIVATE": True, "SENSITIVE": False, "EXTRACTABLE": True}


def _readable() -> dict[Any, Any]:
    from pkcs11 import Attribute

    return {Attribute[name]: value for name, value in _READABLE.items()}


def _raw_pkcs11(session: Any) -> Callable[[], bytes]:
    from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

    uses = MechanismFlag.WRAP | MechanismFlag.UNWRAP
    kek = session.generate_key(KeyType.AES, 256, store=False, capabilities=uses)
    content = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET}
    secret = session.create_object({**content, Attribute.VALUE: DEK, **_readable()})
    box = kek.wrap_key(secret, mechanism=Mechanism.AES_KEY_WRAP)
    secret.destroy()
    kind = (ObjectClass.SECRET_KEY, KeyType.GENERIC_SECRET)

    def unwrap() -> bytes:
        key = kek.unwrap_key(
            *kind, box, store=False, capabilities=MechanismFlag(0), mechanism=Mechanism.AES_KEY_WRAP,
            template=_readable(),
        )  # fmt: skip
        value = bytes(key[Attribute.VALUE])
        key.destroy()
        return value

    return unwrap


def _raw_ecdh(session: Any) -> Callable[[], bytes]:
    """One C_DeriveKey and its value, as the AEAD's key."""
    from pkcs11 import KDF, Attribute, KeyType, Mechanism
    from pkcs11.util.ec import encode_named_curve_parameters

    curve = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    _, private = curve.generate_keypair(store=False)
    other, _ = curve.generate_keypair(store=False)
    point = bytes(other[Attribute.EC_POINT])[2:]

    def derive() -> bytes:
        key = private.derive_key(
            KeyType.GENERIC_SECRET, 256, mechanism=Mechanism.ECDH1_DERIVE, mechanism_param=(KDF.NULL, None, point),
            template=_readable(),
        )  # fmt: skip
        value = bytes(key[Attribute.VALUE])
        key.destroy()
        return value

    nonce = os.urandom(12)
    box = AESGCM(derive()).encrypt(nonce, DEK, b"context")
    return lambda: AESGCM(derive()).decrypt(nonce, box, b"context")


@contextmanager
def tpm_side(folder: Path) -> Iterator[list[Contender]]:
    import tpm2_pytss as tss

    from cloister.node.swtpm import SoftwareTpm

    with SoftwareTpm(folder / "swtpm") as theirs, SoftwareTpm(folder / "swtpm-raw") as ours:
        esapi = tss.ESAPI(ours.tcti)
        try:
            options = {"tcti": theirs.tcti, "pcrs": PCRS}
            yield [Contender("tpm", DriverConfig("tpm", options), lambda: _raw_tpm(tss, esapi))]
        finally:
            esapi.close()


def _raw_tpm(tss: Any, esapi: Any) -> Callable[[], bytes]:
    none, symmetric = tss.ESYS_TR.NONE, tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
    pcrs = tss.TPML_PCR_SELECTION.parse(f"sha256:{PCRS}")
    primary = esapi.create_primary(None, "ecc256:aes128cfb", tss.ESYS_TR.OWNER)[0]

    def session(kind: Any) -> Any:
        made = esapi.start_auth_session(none, none, kind, symmetric, tss.TPM2_ALG.SHA256)
        esapi.policy_pcr(made, b"", pcrs)
        return made

    trial = session(tss.TPM2_SE.TRIAL)
    policy = esapi.policy_get_digest(trial)
    esapi.flush_context(trial)
    area = tss.TPMT_PUBLIC(
        type=tss.TPM2_ALG.KEYEDHASH,
        nameAlg=tss.TPM2_ALG.SHA256,
        objectAttributes=tss.TPMA_OBJECT.FIXEDTPM | tss.TPMA_OBJECT.FIXEDPARENT,
        authPolicy=bytes(policy),
    )
    area.parameters.keyedHashDetail.scheme.scheme = tss.TPM2_ALG.NULL
    sensitive = tss.TPM2B_SENSITIVE_CREATE(tss.TPMS_SENSITIVE_CREATE(data=DEK))
    private, public, *_ = esapi.create(primary, sensitive, tss.TPM2B_PUBLIC(publicArea=area))

    def unseal() -> bytes:
        item = esapi.load(primary, private, public)
        policy_session = session(tss.TPM2_SE.POLICY)  # it ends with the command that it authorizes
        value = bytes(esapi.unseal(item, session1=policy_session))
        esapi.flush_context(policy_session)
        esapi.flush_context(item)
        return value

    return unseal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4)
    arguments = parser.parse_args()
    metrics: dict[str, float] = {}
    absent = list(SERVICES)
    present = {"file": (file_side, True), "pkcs11": (pkcs11_side, SOFTHSM.exists()), "tpm": (tpm_side, _has_swtpm())}
    for name, (side, there) in present.items():
        if not there:
            absent.append(name)
            continue
        with tempfile.TemporaryDirectory(prefix="cloister-vaults-") as text, side(Path(text)) as contenders:
            for contender in contenders:
                folder = Path(text) / contender.name
                metrics |= compare(contender, folder, arguments.rounds, arguments.seconds)
    say(f"absent (not run against the real thing here): {', '.join(absent)}")
    print(result_line(NAME, metrics, baseline=f"{BASELINE}; absent: {', '.join(absent)}", n=arguments.rounds))


def _has_swtpm() -> bool:
    return shutil.which("swtpm") is not None


if __name__ == "__main__":
    main()
