"""The Dagster code location: lists of what `orchestration` builds. Loads with no variable set and without I/O."""

import dagster as dg

from nexhealth_pipeline.orchestration.partitions import LOCATIONS

__all__ = ["defs"]


@dg.asset(partitions_def=LOCATIONS, group_name="practice")
def nexhealth_placeholder() -> None:
    """Stands here until the catalog's assets do."""


defs = dg.Definitions(assets=[nexhealth_placeholder], executor=dg.in_process_executor)
