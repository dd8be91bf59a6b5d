"""Tables and bars of figures that were worked out by hand."""

import pytest

from benchmarks import report
from benchmarks.plot import draw


def impl(seconds, lower_bound=None, peak=None, inherent=0, skipped=None):
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "inherent_bytes": inherent,
        "lower_bound": lower_bound,
        "skipped": skipped,
    }


@pytest.fixture
def results():
    """Two cases: ours takes 1/4 of the reference's time, 5 times the lower bound's; then the reference does not fit."""
    first = {
        "theirs": impl([4.0, 8.0, 40.0], peak=70_000_000, inherent=20_000_000),
        "ours": impl([1.0, 2.0, 9.0], lower_bound="lower_bound", peak=21_000_000, inherent=20_000_000),
        "lower_bound": impl([0.2, 0.4, 2.0], peak=0),
    }
    second = {
        "theirs": impl([], skipped="needs about 9.0 GB, 1.0 GB are available"),
        "ours": impl([3.0], lower_bound="lower_bound"),
        "lower_bound": impl([0.5]),
    }
    case = {"group": "classes", "reference": "theirs", "moved_bytes": 10**9}
    return {
        "benchmark": "loss",
        "environment": {"device": "cpu", "name": "CPU", "threads": 2, "torch": "2", "quick": False},
        "cases": [
            {**case, "name": "small", "implementations": first},
            {**case, "name": "large", "implementations": second},
        ],
    }


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table(results):
    lines = report.table(results, "classes").strip().splitlines()
    assert lines[0] == "## classes"
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    assert cells(table[0]) == ["case", "implementation", "/ theirs", "/ lower bound", "peak MB", "ms"]
    assert [cells(line) for line in table[2:]] == [
        ["small", "theirs", "1.00", "-", "50", "8000"],
        ["small", "ours", "0.25", "5.00", "1", "2000"],
        ["small", "lower_bound", "0.0500", "-", "0", "400"],
        ["large", "ours", "-", "6.00", "-", "3000"],
        ["large", "lower_bound", "-", "-", "-", "500"],
    ]
    assert lines[-1] == "Left out: theirs, large: needs about 9.0 GB, 1.0 GB are available."


def test_other_groups_have_tables_of_their_own(results):
    results["cases"][1]["group"] = "batch"
    assert "large" not in report.table(results, "classes")
    assert "small" not in report.table(results, "batch")


def test_bandwidth_on_a_gpu(results):
    """1 GB in a median of 2 s; the lower bound, a copy of as many bytes, takes a fifth of the time."""
    results["environment"]["device"] = "cuda"
    table = [line for line in report.table(results, "classes").splitlines() if line.startswith("|")]
    assert cells(table[0])[-1] == "bandwidth"
    assert [cells(line)[-1] for line in table[2:5]] == ["0.125 GB/s", "0.5 GB/s (20 %)", "2.5 GB/s"]


def test_times_of_a_cpu_are_no_claims(results):
    assert "Ratios matter; times are of this machine and this moment." in report.heading(results)
    results["environment"].update(device="cuda", name="A GPU")
    assert "A GPU" in report.heading(results)
    assert "Ratios" not in report.heading(results)


def test_bars(results, tmp_path):
    results["cases"].append({**results["cases"][0], "group": "batch", "name": "two"})
    figure = draw(results, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    # The reference is the line at 1, and has no bar; nor has a case without it.
    assert names == ["classes", "small: ours", "small: lower_bound", "batch: two", "ours", "lower_bound"]
    ends = {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_x() + bar.get_width() for bar in axes.patches}
    assert ends == pytest.approx({"small: ours": 0.25, "small: lower_bound": 0.05, "ours": 0.25, "lower_bound": 0.05})
    assert all(bar.get_x() == 1 for bar in axes.patches)
    assert axes.get_xlim()[0] < 0.05 and axes.get_xlim()[1] > 1
