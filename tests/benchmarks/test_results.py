"""The arithmetic and the form of what benchmarks report."""

import pytest
import report
import results
from results import Part, Table, kept, markdown, percentile, spread


@pytest.mark.parametrize(
    ("figures", "digits", "said"),
    [
        ([], 0, "-"),
        ([3.0], 1, "3.0"),
        ([3.0, 1.0, 2.0], 0, "2 (1-3)"),
        ([1000.0, 3000.0], 0, "2,000 (1,000-3,000)"),
    ],
)
def test_a_median_is_followed_by_the_least_and_the_greatest(figures, digits, said):
    assert spread(figures, digits) == said


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_the_least_figure_that_its_share_does_not_exceed(share, value):
    assert percentile(list(range(100, 0, -1)), share) == value


def test_a_percentile_of_nothing_is_nothing():
    assert percentile([], 0.5) == 0


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown(Table(["a"], [["x|y"]], "T")) == ["**T**", "", "| a |", "| --- |", "| x\\|y |"]


def test_a_kept_part_comes_back_with_the_machine_it_ran_on(tmp_path, capsys):
    part = Part("one", "One", tables=[Table(["a"], [["1"]])])
    results.show(part, tmp_path / "new" / "one.json")
    found = kept(tmp_path / "new" / "one.json")
    assert found.tables == part.tables
    assert "cores" in found.machine
    assert "PostgreSQL 18." in found.machine
    assert "| 1 |" in capsys.readouterr().out


def test_the_report_has_all_parts_in_order_and_says_which_failed(tmp_path):
    for part in (
        Part("b", "Second", failed=True),
        Part("a", "First", quick=True),
        Part("z", "Unknown", "said so"),
    ):
        results.keep(part, tmp_path / "results" / f"{part.name}.json")
    text = report.write(tmp_path, ["a", "b"]).read_text()
    assert text.index("## First") < text.index("## Second") < text.index("## Unknown") < text.index("said so")
    assert "quick run" in text.split("## Second")[0]
    assert "It failed" in text.split("## Second")[1].split("## Unknown")[0]
