"""The `nexhealth` command. Starting it imports little: each command imports what it needs when it runs."""

from nexhealth_pipeline.cli.app import main
from nexhealth_pipeline.cli.reference import reference

__all__ = ["main", "reference"]
