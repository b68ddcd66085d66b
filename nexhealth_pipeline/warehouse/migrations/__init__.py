"""Alembic's migrations of the system tables, functions and roles (collection tables: `tables.py`)."""
