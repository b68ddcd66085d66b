"""The launcher of runs in a cluster. Named in deploy/kubernetes/dagster.yaml; the only module that needs dagster-k8s."""

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_k8s import K8sRunLauncher

from nexhealth_pipeline.orchestration.command_runs import is_of_a_command

__all__ = ["NexHealthK8sRunLauncher"]


class NexHealthK8sRunLauncher(K8sRunLauncher):
    """Dagster's, but for runs of commands, which have no Job: not finding it, it would take them for dead."""

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """How the run's Job does. A command's run, which has none, counts as alive: its lock tells when it is dead."""
        health: CheckRunHealthResult = super().check_run_worker_health(run)
        if health.status is WorkerStatus.UNKNOWN and is_of_a_command(run.tags):
            # Repeated from Dagster's pages it keeps its tags, and has a Job.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return health
