"""Doubles of key services: small servers on loopback that speak just the calls which the drivers use.

Each checks its requests strictly and encrypts for real, so a driver that binds nothing, sends a wrong field or takes a
refusal for an answer fails. What no double can show: that the service itself behaves as its documents say, its exact
wording, limits and permissions, and how soon one of its machines knows what another one did.
"""
