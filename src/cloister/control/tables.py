"""The catalogue's tables: metadata and ciphertext's whereabouts only. Digests are in hex, times in unix seconds."""

from __future__ import annotations

from sqlalchemy import JSON, Column, ForeignKey, Integer, MetaData, String, Table, Text

__all__ = [
    "contract_assets",
    "contract_parties",
    "contracts",
    "events",
    "jobs",
    "metadata",
    "objects",
    "parties",
    "releases",
    "revocations",
    "settings",
    "uploads",
]

metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

parties = Table(
    "parties",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("card", Text, nullable=False),
    Column("signing", String(64), nullable=False),
    Column("address", String(255), nullable=False),
    Column("updated", Integer, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("party", String(63), primary_key=True),
    Column("started", Integer, nullable=False),
)

objects = Table(
    "objects",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("owner", String(63), nullable=False, index=True),
    Column("name", String(192), nullable=False, index=True),
    Column("class", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("contract", String(64)),
    Column("job", String(64)),
    Column("size", Integer, nullable=False),
    Column("files", Integer, nullable=False),
    Column("stored", Integer, nullable=False),
)

contracts = Table(
    "contracts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("name", String(63), nullable=False, index=True),
    Column("serial", Integer, nullable=False),
    Column("envelope", Text, nullable=False),
    Column("proposer", String(63), nullable=False),
    Column("signed", Integer, nullable=False),  # 1 once every party's signature is there
    Column("stored", Integer, nullable=False),
)

contract_parties = Table(
    "contract_parties",
    metadata,
    Column("contract", ForeignKey("contracts.digest"), primary_key=True),
    Column("party", String(63), primary_key=True, index=True),
    Column("signed", Integer, nullable=False),
)

contract_assets = Table(
    "contract_assets",
    metadata,
    Column("contract", ForeignKey("contracts.digest"), primary_key=True),
    Column("asset", String(64), primary_key=True, index=True),
)

revocations = Table(
    "revocations",
    metadata,
    Column("contract", ForeignKey("contracts.digest"), primary_key=True),
    Column("party", String(63), primary_key=True),
    Column("envelope", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("stored", Integer, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("contract", ForeignKey("contracts.digest"), nullable=False, index=True),
    Column("submitter", String(63), nullable=False),
    Column("output", String(192), nullable=False),
    Column("envelope", Text, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("error", JSON),
    Column("timings", JSON),
    Column("submitted", Integer, nullable=False),
    Column("started", Integer),
    Column("finished", Integer),
)

events = Table(
    "events",
    metadata,
    Column("job", ForeignKey("jobs.digest"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", Integer, nullable=False),
    Column("event", JSON, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("job", ForeignKey("jobs.digest"), primary_key=True),
    Column("output", String(192), nullable=False, index=True),
    Column("contract", String(64), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("stored", Integer, nullable=False),
)
