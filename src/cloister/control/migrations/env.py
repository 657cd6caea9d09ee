"""Run by Alembic with the connection that ``Database`` opened. There is no offline mode and no configuration file."""

from alembic import context

from cloister.control.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
