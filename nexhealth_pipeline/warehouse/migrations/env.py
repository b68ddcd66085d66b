"""Alembic's entry: runs the migrations on the connection that `warehouse.migrate` hands in."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="nexhealth_alembic_version",
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
