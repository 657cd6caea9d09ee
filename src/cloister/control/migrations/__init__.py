"""Alembic's scripts for the catalogue: forward only, each tested from an empty database."""
