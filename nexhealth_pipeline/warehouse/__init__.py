"""How rows live in PostgreSQL: server, connections, migrations, merge, sync state and log."""
