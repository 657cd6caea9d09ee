"""The broker's tables. Small, named after what they hold; digests and keys are lower-case hex."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text

__all__ = ["HINTS", "INDEXES", "LOGGED", "METADATA"]

METADATA = MetaData()

# PostgreSQL's INTEGER has 32 bits, and its texts sort by the language of the database: rows come by their bytes here.
_TEXT = Text().with_variant(Text(collation="C"), "postgresql")
_NUMBER = Integer().with_variant(BigInteger(), "postgresql")


def _text(name: str, *, key: bool = False, optional: bool = False) -> Column[str]:
    return Column(name, _TEXT, primary_key=key, nullable=optional)


def _number(name: str, *, optional: bool = False) -> Column[int]:
    return Column(name, _NUMBER, nullable=optional)


# How far the state has come: ``revision``, ``log_size``, ``log_root``; ``announced``: the highest revision given out.
# Where replicas share it, ``vault``: the revision and digest of the vault's file that was last used.
Table("progress", METADATA, _text("name", key=True), _text("value"))

# A change that is announced, perhaps logged, and not yet applied. Empty but for an instant, or after a crash.
Table("intents", METADATA, Column("revision", _NUMBER, primary_key=True, autoincrement=False), _text("changes"))

# Not logged: address hints, and the newest heads of other parties' logs.
HINTS = ("peers", "heads", "told")
Table("peers", METADATA, _text("name", key=True), _text("address"))
Table("heads", METADATA, _text("party", key=True), _text("note"))
# Who acknowledged the revocation of which contract. Lost rows cost a repeated notice, nothing else.
Table("told", METADATA, _text("contract", key=True), _text("party", key=True), _number("at"))

_LOGGED = [
    # ``card``: the party's own; ``compromised``: whether it has declared its own keys lost; ``vault_revision``;
    # ``rotation``: what a rotation of the KEK still has to reach, empty when there is none; ``rotated_at``,
    # ``schedule``; ``checkpoints``: their shredding, as ``rotation``; ``recovery_split``: when shares were made;
    # ``rekeying``: when a new master key was begun, until it is made;
    # ``destroying``: KEK epochs that a rotation is about to destroy; ``destroyed``: what the last one told of that.
    Table("facts", METADATA, _text("name", key=True), _text("value")),
    Table("pins", METADATA, _text("name", key=True), _text("card"), _number("compromised")),
    # ``signed``: by this party; ``complete``: by all. ``revocation`` is its envelope, ``revoked_by`` its signer.
    Table(
        "contracts",
        METADATA,
        _text("digest", key=True),
        _text("name"),
        _number("serial"),
        _text("envelope"),
        _number("signed"),
        _number("complete"),
        _text("revoked_by", optional=True),
        _text("revocation", optional=True),
    ),
    # Admitted runs: what a contract's budget counts. ``instance`` is the newest one.
    Table(
        "jobs",
        METADATA,
        _text("digest", key=True),
        _text("contract"),
        _text("envelope"),
        _text("instance"),
        _number("step", optional=True),
        _text("root", optional=True),
        _number("checkpoint_entry", optional=True),
    ),
    # One lease each. ``cut``: ended by a newer instance or a revocation, for good.
    Table(
        "instances",
        METADATA,
        _text("instance", key=True),
        _text("job"),
        _text("contract"),
        _text("signing"),
        _text("hpke"),
        _number("sequence"),
        _number("expires"),
        _number("cut"),
    ),
    Table("permits", METADATA, _text("instance", key=True), _text("output"), _number("issued"), _number("entry")),
    Table(
        "assets",
        METADATA,
        _text("digest", key=True),
        _text("name"),
        _text("asset_id"),
        _number("version"),
        _text("manifest"),  # the payload; it is signed when it is handed out
        _text("class"),
        _text("wrapped", optional=True),  # none once it was shredded
        _number("epoch", optional=True),  # of the KEK that it is wrapped under
        _number("keep_until"),
        _number("shredded", optional=True),  # when, and why
        _text("reason", optional=True),
    ),
    # Legal holds by asset name, over all its versions. One that was lifted has no reason any more.
    Table("holds", METADATA, _text("name", key=True), _text("reason", optional=True), _number("at")),
    # Re-encryptions: ``wrapped`` is the data key of the version to come, bound to ``context``. ``state``: running, done
    # or ended.
    Table(
        "tasks",
        METADATA,
        _text("task", key=True),
        _text("name"),
        _text("source"),
        _text("asset_id"),
        _number("version"),
        _text("commitment"),
        _text("context"),
        _text("wrapped", optional=True),
        _number("epoch", optional=True),
        _text("state"),
        _number("started"),
    ),
]

# Tables that change only together with a log entry.
LOGGED = {table.name: table for table in _LOGGED}

# What a release looks up by something else than the key: else it takes longer with every run there ever was.
INDEXES = [
    Index("contracts_by_name", LOGGED["contracts"].c.name),
    Index("jobs_by_contract", LOGGED["jobs"].c.contract),
    Index("instances_by_job", LOGGED["instances"].c.job),
]
