"""Views with local times answer also where the server would have several workers read a table.

A zone is tried in a subtransaction. Before PostgreSQL 17 none can be begun while workers run, not even outside them, so
every such plan of these views ended with an error, and none is lost. From 17 on it can, and they stay; a warehouse
that gets there later is told by hand (docs/operations.md).
"""

from alembic import op

revision = "0015"
down_revision = "0014"

_ALONE = """
DO $block$
BEGIN
    IF current_setting('server_version_num')::integer < 170000 THEN
        ALTER FUNCTION nexhealth_zone(text) PARALLEL UNSAFE;
    END IF;
END
$block$;
"""


def upgrade() -> None:
    """Change what is said of the function; views on it need not change."""
    op.get_bind().exec_driver_sql(_ALONE)
