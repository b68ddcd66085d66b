"""The launcher of runs in a cluster. Named in deploy/kubernetes/dagster.yaml; the only module that needs dagster-k8s."""

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_k8s import K8sRunLauncher

from nexhealth_pipeline.orchestration.command_runs import is_of_a_command

__all__ = ["NexHealthK8sRunLauncher"]

_NO_JOB = "could not be found"
"""How dagster-k8s ends what it says where the cluster answered that there is no such Job; of an error it tells the trace."""


class NexHealthK8sRunLauncher(K8sRunLauncher):
    """Dagster's, but a run is dead only where the cluster says so, and runs of commands, which have no Job, are not.

    Dagster's monitor fails whatever is not known to live. For a minute without the cluster's API that would be all runs,
    while their pods work on, and a schedule could begin beside them.
    """

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """How the run's Job does. Where that cannot be told the run counts as alive: its lock tells when it is dead."""
        health: CheckRunHealthResult = super().check_run_worker_health(run)
        if health.status is not WorkerStatus.UNKNOWN:
            return health  # a command's run, repeated from Dagster's pages, keeps its tags, and has a Job
        if is_of_a_command(run.tags) or not (health.msg or "").endswith(_NO_JOB):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return health
