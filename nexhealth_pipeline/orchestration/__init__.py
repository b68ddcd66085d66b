"""The Dagster side: resources, partitions, assets, jobs, schedules, sensors."""
