"""What the comparison makes of its costs, and of whoever does not read what it must."""

import tempfile
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import bench
import psycopg
import pytest
from measure import Cost


def cost(wall: float, *, wal: int = 0, answer: str = "") -> Cost:
    return Cost(
        wall,
        client_cpu=2 * wall,
        server_cpu=wall,
        rss=100.0,
        wal=wal,
        rows_written=7,
        rows_of_patients=5,
        answer=answer,
    )


def test_figures_are_per_record_read_which_an_increment_has_a_hundredth_of():
    rounds = [
        {"ours": {"empty table": cost(one, wal=2_000_000), "incremental of 1 %": cost(1.0)}} for one in (1.0, 2.0, 4.0)
    ]
    rows = {(row[0], row[1]): row[2:] for row in bench.table(rounds, 10_000).rows}
    assert rows["empty table", "ours"] == [
        "2.0", "5,000 (2,500-10,000)", "40.0 + 20.0", "60.0 (30.0-120.0)", "-", "-", "100", "7", "5", "2.00 (2.00-2.00)",
    ]  # fmt: skip
    assert rows["incremental of 1 %", "ours"][1] == "100 (100-100)"


def test_ratios_are_of_one_round_so_that_a_slow_minute_of_the_machine_does_not_count():
    slow, fast = {"ours": cost(4.0), "limit script": cost(3.0)}, {"ours": cost(2.0), "limit script": cost(1.0)}
    rounds = [{name: {"empty table": one} for name, one in each.items()} for each in (slow, fast)]
    ours, limit = bench.table(rounds, 1000).rows
    assert ours[6:8] == ["0.62 (0.50-0.75)", "1.67 (1.33-2.00)"]
    assert limit[6:8] == ["1.00 (1.00-1.00)", "1.00 (1.00-1.00)"]


def test_a_contestant_without_a_case_has_no_bar_there():
    rounds = [{"ours": {case: cost(1.0) for case in bench.CASES}, "raw COPY": {"empty table": cost(1.0)}}]
    speed = next(chart for chart in bench.charts(rounds, 1000) if chart.name == "speed")
    assert speed.labels == list(bench.CASES[:3])
    assert speed.series == {"ours": [1000.0] * 3, "raw COPY": [1000.0, None, None]}


def contestant(url: str) -> bench.Contestant:
    return bench.Contestant("ours", ("python", "ours.py"), "", url, url, {}, records=250)


@pytest.mark.parametrize(
    ("case", "answer", "read"),
    [
        ("empty table", "", "no records were read, not 250"),
        ("nothing changed", "0 0 0", "0 records were read, not 250"),
        ("empty table", "249", "249 records were read, not 250"),
        ("incremental of 1 %", "250 250 0", "250 records were read, not 3"),
    ],
)
def test_a_contestant_that_does_not_read_what_it_must_has_no_time(
    monkeypatch: pytest.MonkeyPatch, case: str, answer: str, read: str
) -> None:
    """A read that failed at once was a record of speed."""
    monkeypatch.setattr(bench, "run", lambda *_: cost(0.1, answer=answer))
    monkeypatch.setattr("urllib.request.urlopen", lambda _: BytesIO())
    with pytest.raises(RuntimeError, match=f"ours, {case}: {read}"):
        contestant("").run(case)


def test_what_was_read_as_it_must_be_counts_and_what_comes_before_reads_nothing(
    monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    told = {"full": cost(1.0, answer="250 250 0"), "prepare": cost(2.0)}
    monkeypatch.setattr(bench, "run", lambda command, *_: told[command[-1]])
    assert contestant(database_url).run("empty table").wall == 1.0
    assert contestant(database_url).run(bench.PREPARED).wall == 2.0


class Postgres:
    """The tests' server, as the benchmark asks for its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def tcp_url(self, database: str) -> str:
        return self.url.replace("@/postgres?", f"@/{database}?")


def test_nothing_is_left_of_a_contestant_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server_url: str
) -> None:
    """Each left a database and its files behind, hundreds of megabytes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(bench, "api", lambda _: nullcontext("http://127.0.0.1:9"))

    def fail() -> None:
        with bench.contestant("ours", ("python", "ours.py"), 5, Postgres(server_url)) as one:  # type: ignore[arg-type]  # enough of it
            Path(one.environment["DLT_DATA_DIR"]).mkdir()
            (tmp_path / f"nexhealth-bench-{one.environment['BENCH_ID']}.copy").touch()
            assert len([*tmp_path.iterdir()]) == 2
            assert databases(server_url)
            raise RuntimeError("it ended with 1")

    with pytest.raises(RuntimeError, match="it ended with 1"):
        fail()
    assert not [*tmp_path.iterdir()]
    assert not databases(server_url)


def databases(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'bench@_%' ESCAPE '@'").fetchall()
