"""What the comparison makes of its costs."""

import bench
from measure import Cost


def cost(wall: float, *, wal: int = 0) -> Cost:
    return Cost(wall, client_cpu=2 * wall, server_cpu=wall, rss=100.0, wal=wal, rows_written=7, answer="")


def test_figures_are_per_record_read_which_an_increment_has_a_hundredth_of():
    rounds = [
        {"ours": {"empty table": cost(one, wal=2_000_000), "incremental of 1 %": cost(1.0)}} for one in (1.0, 2.0, 4.0)
    ]
    rows = {(row[0], row[1]): row[2:] for row in bench.table(rounds, 10_000).rows}
    assert rows["empty table", "ours"] == [
        "2.0", "5,000 (2,500-10,000)", "40.0 + 20.0", "60.0 (30.0-120.0)", "-", "-", "100", "7", "2.0",
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
