"""The Dagster code location: what `orchestration` builds. Loads with no variable set and without I/O."""

from nexhealth_pipeline.orchestration import code_location

__all__ = ["defs"]

defs = code_location.DEFINITIONS
