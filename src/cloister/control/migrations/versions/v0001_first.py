"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _tables_of_objects()
    _tables_of_contracts()
    _tables_of_jobs()


def _tables_of_objects() -> None:
    op.create_table(
        "objects",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=192), nullable=False),
        sa.Column("class", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("contract", sa.String(length=64), nullable=True),
        sa.Column("job", sa.String(length=64), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index(op.f("ix_objects_name"), "objects", ["name"], unique=False)
    op.create_index(op.f("ix_objects_owner"), "objects", ["owner"], unique=False)
    op.create_table(
        "parties",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("card", sa.Text(), nullable=False),
        sa.Column("signing", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("updated", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "uploads",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("party", sa.String(length=63), nullable=False),
        sa.Column("started", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "party"),
    )


def _tables_of_contracts() -> None:
    op.create_table(
        "contracts",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("envelope", sa.Text(), nullable=False),
        sa.Column("proposer", sa.String(length=63), nullable=False),
        sa.Column("signed", sa.Integer(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index(op.f("ix_contracts_name"), "contracts", ["name"], unique=False)
    op.create_table(
        "contract_assets",
        sa.Column("contract", sa.String(length=64), nullable=False),
        sa.Column("asset", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract"],
            ["contracts.digest"],
        ),
        sa.PrimaryKeyConstraint("contract", "asset"),
    )
    op.create_index(op.f("ix_contract_assets_asset"), "contract_assets", ["asset"], unique=False)
    op.create_table(
        "contract_parties",
        sa.Column("contract", sa.String(length=64), nullable=False),
        sa.Column("party", sa.String(length=63), nullable=False),
        sa.Column("signed", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract"],
            ["contracts.digest"],
        ),
        sa.PrimaryKeyConstraint("contract", "party"),
    )
    op.create_index(op.f("ix_contract_parties_party"), "contract_parties", ["party"], unique=False)
    op.create_table(
        "revocations",
        sa.Column("contract", sa.String(length=64), nullable=False),
        sa.Column("party", sa.String(length=63), nullable=False),
        sa.Column("envelope", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract"],
            ["contracts.digest"],
        ),
        sa.PrimaryKeyConstraint("contract", "party"),
    )


def _tables_of_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("contract", sa.String(length=64), nullable=False),
        sa.Column("submitter", sa.String(length=63), nullable=False),
        sa.Column("output", sa.String(length=192), nullable=False),
        sa.Column("envelope", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("timings", sa.JSON(), nullable=True),
        sa.Column("submitted", sa.Integer(), nullable=False),
        sa.Column("started", sa.Integer(), nullable=True),
        sa.Column("finished", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["contract"],
            ["contracts.digest"],
        ),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index(op.f("ix_jobs_contract"), "jobs", ["contract"], unique=False)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)
    op.create_table(
        "events",
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["jobs.digest"],
        ),
        sa.PrimaryKeyConstraint("job", "seq"),
    )
    op.create_table(
        "releases",
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("output", sa.String(length=192), nullable=False),
        sa.Column("contract", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["jobs.digest"],
        ),
        sa.PrimaryKeyConstraint("job"),
    )
    op.create_index(op.f("ix_releases_output"), "releases", ["output"], unique=False)
