"""How long does verifying evidence take, beside the signatures that must be verified for it?

    python -m benchmarks.attestation [--rounds 9] [--seconds 0.3]

For each platform, evidence that vendors' doubles sign is verified by the whole verifier: parsing, chain, revocation,
collateral, measurements, event log. Every verification is of other evidence, made beforehand. ``_ratio`` compares one
that has never seen the vendor's authorities with the bare signature verifications of all that the platform needs, by
the library, with keys, signatures and messages at hand; they take turns. ``_warm_ratio`` is the same where the
authorities were verified before, as in a broker that serves more than one workload: then fewer signatures are needed
than the baseline has.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from cloister.attestation.collateral import Staleness
from cloister.attestation.events import open_log
from cloister.attestation.snp import SnpVerifier
from cloister.attestation.tdx import TdxVerifier
from cloister.attestation.tpm import TpmVerifier
from cloister.attestation.tpm.parser import parse_public
from cloister.crypto import memory
from cloister.crypto import x509 as ours
from tests import azure_forge, nvidia_forge, snp_forge, tdx_forge
from tests.adversarial import evidence_forge

from . import result_line, say

NAME = "attestation"
BASELINE = "the bare signature verifications that the platform needs, by cryptography"
MANY = 64  # different pieces of evidence
REPORT = bytes(32)
Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """``verify``: one verification a call, of other evidence each time; ``bare``: all signatures of one."""

    name: str
    verify: Call
    bare: list[Call]


def rate(call: Call, seconds: float) -> float:
    """Microseconds a call."""
    done, start = 0, time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        call()
        done += 1
    return (now - start) / done * 1e6


def compare(contender: Contender, rounds: int, seconds: float) -> dict[str, float]:
    def bare() -> None:
        for check in contender.bare:
            check()

    def cold() -> None:
        memory.forget()
        parse_public.cache_clear()
        warm()

    def warm() -> None:
        open_log.cache_clear()  # each node's log is its own, and longer with every launch
        contender.verify()

    sides: dict[str, Call] = {"bare": bare, "cold": cold, "warm": warm}
    for side in sides.values():
        rate(side, seconds / 4)
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seen[name].append(rate(side, seconds))
    us = {name: median(values) for name, values in seen.items()}
    name = contender.name
    say(f"{name}: " + ", ".join(f"{side} {value:,.0f} us" for side, value in us.items()))
    return {
        f"{name}_ratio": median(c / b for c, b in zip(seen["cold"], seen["bare"], strict=True)),
        f"{name}_warm_ratio": median(w / b for w, b in zip(seen["warm"], seen["bare"], strict=True)),
        f"{name}_us": us["cold"],
        f"{name}_warm_us": us["warm"],
        f"{name}_bare_us": us["bare"],
        f"{name}_signatures": len(contender.bare),
    }


# Bare verifications.


def raw(key: Any, message: bytes, algorithm: hashes.HashAlgorithm, *, pss: bool = False) -> Call:
    """One verification of a signature made by ``key`` here: what it signs does not matter to its price."""
    public = key.public_key()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(message, ec.ECDSA(algorithm))
        return lambda: public.verify(signature, message, ec.ECDSA(algorithm))
    pad = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if pss else padding.PKCS1v15()
    signed = key.sign(message, pad, algorithm)
    return lambda: public.verify(signed, message, pad, algorithm)


def links(*chain: bytes) -> list[Call]:
    """The signatures of certificates (DER, the leaf first) by the next in the chain, and the root's own."""
    parsed = [x509.load_der_x509_certificate(der) for der in chain]
    return [link(c, above) for c, above in zip(parsed, [*parsed[1:], parsed[-1]], strict=True)]


def link(certificate: x509.Certificate, issuer: x509.Certificate) -> Call:
    key: Any = issuer.public_key()
    signature, message = certificate.signature, certificate.tbs_certificate_bytes
    algorithm, parameters = certificate.signature_hash_algorithm, certificate.signature_algorithm_parameters
    if isinstance(key, rsa.RSAPublicKey):
        return lambda: key.verify(signature, message, parameters, algorithm)
    return lambda: key.verify(signature, message, parameters)


def size(count: int) -> bytes:
    return bytes(count)


# The platforms.


def turns(calls: list[Call]) -> Call:
    following: Iterator[Call] = cycle(calls)
    return lambda: next(following)()


def tpm() -> Contender:
    forge, log = evidence_forge.Forge(), evidence_forge.Log()
    verifier, report = TpmVerifier(), forge.report(log.text())
    made = [forge.evidence(log, quote={"clock": number}) for number in range(MANY)]
    calls: list[Call] = [lambda e=e: verifier.verify(e, report, now=1_790_000_000) for e in made]  # type: ignore[misc]
    return Contender("tpm", turns(calls), [raw(forge.key, size(145), hashes.SHA256())])


def snp() -> Contender:
    forge = snp_forge.Forge()
    verifier = SnpVerifier(forge.collateral(), Staleness(), roots=forge.roots)
    made = [forge.evidence() for _ in range(MANY)]
    calls: list[Call] = [
        lambda e=e: verifier.verify(e, forge.data(e.additional), now=snp_forge.NOW)  # type: ignore[misc]
        for e in made
    ]
    return Contender("snp", turns(calls), _snp_bare(forge))


def _snp_bare(forge: Any) -> list[Call]:
    """The report; VCEK, ASK, ARK; the revocation list."""
    report = raw(forge.key, size(0x2A0), hashes.SHA384())
    crl = raw(forge.root_key, size(300), hashes.SHA384(), pss=True)
    return [report, *links(forge.leaf().der, *(c.der for c in forge.chain())), crl]


def tdx() -> Contender:
    forge, text = tdx_forge.Forge(), evidence_forge.Log().text()
    verifier = TdxVerifier(forge.collateral(), Staleness(), roots={forge.root.fingerprint})
    made = [forge.evidence(text) for _ in range(MANY)]
    calls: list[Call] = [
        lambda e=e, r=r: verifier.verify(e, r, now=tdx_forge.NOW)  # type: ignore[misc]
        for e, r in made
    ]
    return Contender("tdx", turns(calls), _tdx_bare(forge))


def _tdx_bare(forge: Any) -> list[Call]:
    """The quote and the quoting enclave's report; the platform's chain; two documents and their signer; two lists."""
    p256 = forge.signer.key
    signed = [raw(p256, size(count), hashes.SHA256()) for count in (632, 384, 2800, 600, 250, 250)]
    platform = [c.der for c in ours.read_certificates(forge.chain())]
    return [*signed, *links(*platform), *links(ours.read_certificate(forge.signer.pem).der, platform[-1])]


def nvidia() -> Contender:
    factory = nvidia_forge.Factory()
    items, gpu = factory.items(), factory.gpu()
    extra = factory.answers(gpu) if hasattr(factory, "answers") else []
    collateral = type(items)([*items, *extra])
    verifier = factory.verifier(collateral)
    made = [[gpu.entry(REPORT)] for _ in range(MANY)]
    calls: list[Call] = [lambda e=e: verifier.verify(e, REPORT, now=nvidia_forge.NOW) for e in made]  # type: ignore[misc]
    chain = [c.der for c in ours.read_certificates(gpu.pem)]
    signer = [entity.parsed.der for entity in (factory.rim_signer, factory.rim_middle, factory.rim_root)]
    key = factory.rim_signer.key
    signed = [raw(key, size(count), hashes.SHA384()) for count in (2000, 700, 700)]
    return Contender("nvidia", turns(calls), [*signed, *links(*chain), *links(*signer), *links(*signer)])


def azure(kind: str) -> Contender:
    forge, log = azure_forge.AzureForge(kind), evidence_forge.Log()
    verifier = forge.verifier()
    made = [forge.evidence(log, REPORT) for _ in range(MANY // 4)]
    calls: list[Call] = [lambda e=e: verifier.verify(e, REPORT, now=forge.now) for e in made]  # type: ignore[misc]
    below = _snp_bare(forge.cpu) if kind == "snp" else _tdx_bare(forge.cpu)
    return Contender(f"az_{kind}_vtpm", turns(calls), [raw(forge.ak, size(145), hashes.SHA256()), *below])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3)
    opts = parser.parse_args()
    metrics: dict[str, float] = {}
    for make in (tpm, snp, tdx, nvidia, lambda: azure("snp"), lambda: azure("tdx")):
        metrics |= compare(make(), opts.rounds, opts.seconds)
    print(result_line(NAME, metrics, baseline=BASELINE, n=opts.rounds))


if __name__ == "__main__":
    main()
