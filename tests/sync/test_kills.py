"""kill -9 at every step and at any moment: the next sync goes on, and ends where an undisturbed one does."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import DECLARED, nested_in
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sync import fault_points, months
from nexhealth_pipeline.sync.options import Mode
from tests.conftest import _fresh
from tests.forks import Forks

from .fork_server import few_months
from .killed import Witness, facts, open_rows, order, statuses, syncs

SOAK_ROUNDS = int(os.environ.get("SOAK_ROUNDS", "200"))
SEED = int(os.environ.get("SOAK_SEED", "0"))

KINDS: dict[str, Callable[[Collection], bool]] = {
    "key-wide list": lambda one: one.scope is Scope.PRACTICE,
    "list under one row": lambda one: one.per is not None,
    "list by month": lambda one: one.window is not None,
    "list with lists inside": lambda one: bool(nested_in(one)),
    "list whose members a shared database tells": lambda one: any(pass_.membership for pass_ in one.passes),
    "unpaged list": lambda one: one.paging is Paging.NONE,
    "list by page numbers": lambda one: one.paging is Paging.PAGE,
    "cursor list in two passes": lambda one: len(one.passes) > 1,
    "cursor list": lambda one: True,
}
"""A collection is of the first kind that takes it."""


def kind_of(collection: Collection) -> str:
    return next(name for name, takes in KINDS.items() if takes(collection))


def of_kind(kind: str) -> Collection:
    """The first collection of a kind."""
    return next(one for one in DECLARED if one.is_asset and kind_of(one) == kind)


@pytest.fixture(autouse=True)
def _same_months(_few_months: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process plans what the killed ones do."""
    first, ahead = few_months()
    monkeypatch.setattr(months, "FIRST_MONTH", first)
    monkeypatch.setattr(months, "MONTHS_AHEAD", ahead)


@dataclass
class World:
    """A sandbox that no longer changes, and where undisturbed syncs of it end."""

    box: SandboxServer
    syncs: Forks
    server_url: str
    empty: str
    """Template of a warehouse without rows."""
    older: str
    """Template of one that was complete before the last changes."""
    only: list[str] | None
    """Collections that are read; None = all."""
    _ends: dict[str, tuple[dict[str, str], float]] = field(default_factory=dict)

    def before(self, mode: str) -> Iterator[str]:
        """A warehouse of its own to sync in `mode`."""
        yield from _fresh(self.server_url, self.empty if mode == Mode.FULL else self.older)

    def end(self, mode: str) -> tuple[dict[str, str], float]:
        """Facts after an undisturbed sync, and how many seconds it takes."""
        if mode not in self._ends:
            for url in self.before(mode):
                began = time.monotonic()
                self.syncs.finish(**order(self.box, url, mode, only=self.only))
                self._ends[mode] = facts(url), time.monotonic() - began
        return self._ends[mode]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with syncs(tmp_path_factory.mktemp("kills")) as started:
        yield started


@contextmanager
def world_of(only: list[str] | None, started: Forks, server_url: str, template: str) -> Iterator[World]:
    fresh = _fresh(server_url, template)
    older = next(fresh)
    with SandboxServer(patients=10, appointments_per_patient=3, limits=False) as box:
        started.finish(**order(box, older, only=only))
        change(box)
        name = psycopg.conninfo.conninfo_to_dict(older)["dbname"]
        yield World(box, started, server_url, template, str(name), only)
    next(fresh, None)


@pytest.fixture(scope="module")
def world(started: Forks, server_url: str, template: str) -> Iterator[World]:
    """One collection of each kind, and what they need."""
    names = [name for kind in KINDS for name in (*of_kind(kind).after, of_kind(kind).name)]
    with world_of(names, started, server_url, template) as world:
        yield world


@pytest.fixture(scope="module")
def whole_world(started: Forks, server_url: str, template: str) -> Iterator[World]:
    """Every collection."""
    with world_of(None, started, server_url, template) as world:
        yield world


def change(box: SandboxServer) -> None:
    """What happens at a practice between two nights."""
    patients, appointments = box.state.ids("patients"), box.state.ids("appointments")
    for patient in patients[:4]:
        box.state.update("patients", patient, {"first_name": "Changed"})
    for appointment in appointments[:4]:
        box.state.update("appointments", appointment, {"note": "changed"})
    box.state.cancel(appointments[5])
    box.state.move(appointments[6], days=40)
    box.state.delete("appointments", appointments[7])
    box.state.delete("appointments", appointments[8], hard=True)
    box.state.delete("recall_types", box.state.ids("recall_types")[0], hard=True)
    box.state.update("providers", box.state.ids("providers")[0], {"first_name": "Changed"})


def test_every_collection_is_of_a_kind_that_is_killed() -> None:
    """A new kind of declaration must not slip past these tests; each kind exists, so that none is vacuous."""
    assert {kind_of(one) for one in DECLARED if one.is_asset} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sync_killed_at_each_step_goes_on_and_ends_as_if_undisturbed(kind: str, world: World) -> None:
    """A page asked twice costs the practice's API budget, one skipped its data, half a transaction its trust."""
    collection = of_kind(kind)
    only = [*collection.after, collection.name]
    judged = [*only, *(one.name for one in nested_in(collection))]
    judged += ["child_reads"] * (collection.per is not None) + ["patient_locations"] * ("patients" in only)
    expected, _ = world.end(Mode.FULL)
    for url in world.before(Mode.FULL):
        witness = Witness(world.box, url)
        for n, point in enumerate(_orders(collection), 1):
            assert world.syncs.run(**order(world.box, url, only=only, point=point)) == -signal.SIGKILL, point
            witness.nothing_asked_twice()
            assert len(statuses(url)) == n
        world.syncs.finish(**order(world.box, url, only=only))
        witness.nothing_asked_twice()
        ends = facts(url)
        assert {name: ends[name] for name in judged} == {name: expected[name] for name in judged}
        assert open_rows(url) == []
        assert statuses(url) == [*["interrupted"] * 4, "succeeded"]
        assert collection.scope is Scope.PRACTICE or witness.held


def _orders(collection: Collection) -> list[str]:
    """Each point once; `after_copy` does not happen where only the members of a shared database are read."""
    return [f"{point}:{collection.name}" for point in fault_points.POINTS]


@pytest.mark.parametrize("point", ["before_commit", pytest.param("after_commit", marks=pytest.mark.soak)])
def test_a_reconcile_killed_while_it_marks_what_is_gone_is_gone_on_with(point: str, world: World) -> None:
    """A tombstone without its log, or a judgement that is never made again, would be believed for ever."""
    expected, _ = world.end(Mode.RECONCILE)
    for url in world.before(Mode.RECONCILE):
        witness = Witness(world.box, url)
        where = f"{point}:{fault_points.ABSENCES}:2"
        assert world.syncs.run(**order(world.box, url, Mode.RECONCILE, only=world.only, point=where)) == -signal.SIGKILL
        witness.nothing_asked_twice()
        world.syncs.finish(**order(world.box, url, Mode.RECONCILE, only=world.only))
        witness.nothing_asked_twice()
        assert facts(url) == expected
        assert open_rows(url) == []
        with psycopg.connect(url) as connection:
            gone = connection.execute("SELECT count(*) FROM nexhealth_recall_types WHERE deleted_by = 'absence'")
            assert gone.fetchone() == (1,)


@pytest.mark.parametrize("name", ["operatories", "documents"])
def test_a_list_whose_read_was_killed_at_its_very_end_is_not_taken_for_empty(name: str, world: World) -> None:
    """What a practice has is noted after the last page; the next read, of what changed since, may bring no row."""
    only, page, told = ["patients", name], 1000, []
    for point in ("", f"after_commit:{name}"):
        for url in world.before(Mode.FULL):
            died = world.syncs.run(**order(world.box, url, only=only, page=page, point=point))
            assert died == (-signal.SIGKILL if point else 0)
            world.syncs.finish(**order(world.box, url, Mode.INCREMENTAL, only=only, page=page))
            with psycopg.connect(url) as connection:
                found = connection.execute(
                    "SELECT location_id, status FROM nexhealth_capabilities WHERE collection = %s ORDER BY 1", (name,)
                )
                told.append(found.fetchall())
    assert told[1] == told[0]
    assert "supported" in {status for _, status in told[0]}


def kill_at_random(world: World, chance: random.Random) -> None:
    """One or two kills at any moment of a sync, in any mode, then a sync that ends by itself."""
    mode = chance.choice(list(Mode))
    expected, seconds = world.end(mode)
    for url in world.before(mode):
        witness = Witness(world.box, url)
        kills = chance.choice((1, 1, 2))
        for _ in range(kills):
            pid = world.syncs.start(**order(world.box, url, mode, only=world.only))
            time.sleep(chance.random() * seconds)
            world.syncs.kill(pid)
            assert world.syncs.wait(pid) in (-signal.SIGKILL, 0)
            witness.nothing_asked_twice()
            if witness.sync_is_over:  # it was faster: the next one is another sync, which asks for all again
                break
        else:
            world.syncs.finish(**order(world.box, url, mode, only=world.only))
            witness.nothing_asked_twice()
        assert facts(url) == expected
        assert open_rows(url) == []
        assert set(statuses(url)) <= {"interrupted", "succeeded"}


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_a_sync_killed_at_any_moment_ends_as_if_undisturbed(seed: int, world: World) -> None:
    kill_at_random(world, random.Random(seed))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(SEED + 100, SEED + 100 + SOAK_ROUNDS))
def test_many_syncs_killed_at_any_moment_end_as_if_undisturbed(seed: int, whole_world: World) -> None:
    kill_at_random(whole_world, random.Random(seed))


def test_the_variable_ends_a_process_at_its_point_for_the_nth_time() -> None:
    """Tests of others set it for processes that they start themselves."""
    script = (
        "from nexhealth_pipeline.sync.fault_points import reach\n"
        "for name in ('patients', 'providers', 'patients'):\n"
        "    reach('after_copy', name); reach('after_commit', name)\n"
        "    print(name, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"NEXHEALTH_FAULT_POINT": "after_copy:patients:2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["patients", "providers"])


def test_nothing_happens_at_a_point_unless_it_was_asked_for() -> None:
    assert fault_points.armed is None


@pytest.mark.parametrize(
    "order", ["", "before_lunch", "after_copy:patients:0", "after_copy:Patients", "after_copy:a:1:2"]
)
def test_an_order_that_names_no_point_is_refused(order: str) -> None:
    with pytest.raises(InvalidSetting, match="NEXHEALTH_FAULT_POINT"):
        fault_points.killing(order)
