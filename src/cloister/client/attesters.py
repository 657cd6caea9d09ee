"""Enrolling the TPMs of nodes with a party's broker. The messages are JSON files; they need no secrecy to travel."""

from __future__ import annotations

from typing import Any

from ..attestation.tpm import EnrolmentRequest
from ..crypto import parse_json
from ..fields import Fields
from .supervisor import Home

__all__ = ["admit_attester", "enrol_attester", "list_attesters", "remove_attester"]


def enrol_attester(home: Home, party: str, request: bytes) -> dict[str, Any]:
    """The challenge for a node's request: ``{"challenge", "id"}``. Raises what its certificates and keys give."""
    wire = EnrolmentRequest.from_wire(parse_json(request)).to_wire()
    return home.agent(party).enrol_attester(wire)


def admit_attester(home: Home, party: str, proof: bytes) -> dict[str, Any]:
    """The record of an attester whose TPM answered the challenge; from now on its evidence counts at the level said."""
    f = Fields(parse_json(proof), "enrolment proof")
    handle, answer = f.hex("id", 16), f.hex("proof", 32)
    f.done()
    return home.agent(party).admit_attester(handle.hex(), answer.hex())


def list_attesters(home: Home, party: str) -> list[dict[str, Any]]:
    return home.agent(party).attesters()


def remove_attester(home: Home, party: str, ak_name: str) -> dict[str, Any]:
    """Its evidence is level none from now on, so runs above that end within one lease."""
    return home.agent(party).remove_attester(Fields({"name": ak_name}, "attester").hex("name", 34).hex())
