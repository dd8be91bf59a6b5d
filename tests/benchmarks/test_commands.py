"""Every command on its smallest inputs: all implementations run and agree, the table follows from the raw figures."""

import json
import re
import statistics

import pytest
import torch

from benchmarks import detectors, loss, memory, options
from benchmarks.runner import main

QUICK = ("--quick", "--threads", "1")
ONE_CASE = ("--batches", "--sizes")


@pytest.fixture
def run(tmp_path, capsys):
    """run(benchmark, *words, rounds) -> (raw figures, rows of all tables as lists of cells)."""

    def run(benchmark, *words, rounds=2):
        path = tmp_path / "figures.json"
        main(f"benchmarks.{benchmark}", [*QUICK, "--rounds", str(rounds), *words, "--json", str(path)])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return json.loads(path.read_text()), [row for row in rows if row[0] != "case"]

    return run


def assert_table_is_that_of_the_figures(figures, rows, rounds=2):
    """Ratios and memory, computed again."""
    ran = [
        (case, name, impl)
        for case in figures["cases"]
        for name, impl in case["implementations"].items()
        if not impl["skipped"]
    ]
    assert [(row[0], row[1]) for row in rows] == [(case["name"], name) for case, name, _ in ran]
    for row, (case, _, impl) in zip(rows, ran, strict=True):
        assert len(impl["seconds"]) == rounds and min(impl["seconds"]) > 0
        reference = case["implementations"][case["reference"]]["seconds"]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(impl["seconds"], reference, strict=True))
        assert float(row[2]) == pytest.approx(ratio, rel=0.06, abs=1e-4)
        if impl["lower_bound"]:
            lower_bound = case["implementations"][impl["lower_bound"]]["seconds"]
            ratio = statistics.median(ours / theirs for ours, theirs in zip(impl["seconds"], lower_bound, strict=True))
            assert float(row[3]) == pytest.approx(ratio, rel=0.06, abs=1e-4)
        else:
            assert row[3] == "-"
        assert float(row[4]) == pytest.approx((impl["peak_bytes"] - impl["inherent_bytes"]) / 1e6, abs=0.6)
        assert float(row[5]) == pytest.approx(1000 * statistics.median(impl["seconds"]), rel=0.01)


def sides_of(figures, group):
    """Side -> reason for leaving it out, of the first case of a group whose title begins so."""
    case = next(case for case in figures["cases"] if case["group"].startswith(group))
    return {name: impl["skipped"] for name, impl in case["implementations"].items()}


def test_loss(run):
    figures, rows = run("loss", "--classes", "3", "--batches", "2", "--sizes", "96")
    assert_table_is_that_of_the_figures(figures, rows)
    names = [case["name"] for case in figures["cases"]]
    assert names == ["focal", "focal_star", "cross_entropy", "3 classes", "2 images", "96x160"]
    assert list(sides_of(figures, "losses")) == ["plugin", "Detectron2", "torchvision", "fvcore", loss.LOWER_BOUND]
    assert list(sides_of(figures, "classes")) == ["plugin", "Detectron2", loss.LOWER_BOUND]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loss_in_half_precision(dtype):
    for case in loss.cases(options.parse(loss, [*QUICK, "--dtype", dtype, "--classes", *ONE_CASE])):
        outcomes = {impl: outcome(case.step(impl)) for impl in case.implementations}
        assert outcomes["plugin"]["gradient"].dtype == getattr(torch, dtype)
        for impl in set(case.implementations) - {loss.LOWER_BOUND}:
            case.check(impl, outcomes[impl], outcomes[case.reference])


def outcome(step):
    step.prepare()
    return step.outcome(step.run())


def test_matching(run):
    figures, rows = run("matching", "--boxes", "30", "--batches", "2", "--sizes")
    assert_table_is_that_of_the_figures(figures, rows)
    assert [case["name"] for case in figures["cases"]] == ["30 boxes", "2 images"]
    assert list(sides_of(figures, "boxes"))[:3] == ["plugin", "Detectron2", "torchvision"]


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["training", "inference"])
def test_detectors(benchmark, run, tmp_path):
    figures, rows = run(benchmark, *ONE_CASE, "--plot", str(tmp_path / "bars.png"), rounds=1)
    assert (tmp_path / "bars.png").stat().st_size > 1000
    assert_table_is_that_of_the_figures(figures, rows, rounds=1)
    implementations = sides_of(figures, {"training": "step"}.get(benchmark, benchmark))
    everywhere = [impl for impl in implementations if "bf16" not in impl]
    assert everywhere == [
        "Detectron2, fp32",
        "plugin, fp32",
        "plugin, fp32 fast",
        "torchvision, fp32",
        "lower bound: convolutions, fp32",
        "lower bound: convolutions, fp32 fast",
    ]
    assert not any(implementations[impl] for impl in everywhere)
    assert {"plugin, bf16 fast", "Detectron2, bf16"} <= set(implementations)
    if benchmark == "inference":
        assert list(sides_of(figures, "after the convolutions")) == ["Detectron2, fp32", "plugin, fp32"]


def test_rows_of_a_gpu():
    """Half precision as Detectron2's trainer has it, and each row measured against convolutions of its own kind."""
    gpu = torch.device("cuda")
    implementations = detectors.all_sides(gpu)
    case = detectors.DetectorCase("", "", implementations, size=64, images=1, network=(), device=gpu)
    assert [case.obstacle(impl) for impl in case.implementations] == [None] * len(implementations)
    assert case.lower_bounds == {
        "Detectron2, fp32": "lower bound: convolutions, fp32",
        "plugin, fp32": "lower bound: convolutions, fp32",
        "plugin, fp32 fast": "lower bound: convolutions, fp32 fast",
        "plugin, bf16 fast": "lower bound: convolutions, bf16 fast",
        "plugin, fp16 fast": "lower bound: convolutions, fp16 fast",
        "Detectron2, fp16": "lower bound: convolutions, fp16 fast",
        "torchvision, fp32": "lower bound: convolutions, fp32",
    }


def test_as_a_command(python, tmp_path):
    words = ["--quick", "--rounds", "1", "--boxes", "7", *ONE_CASE, "--plot", str(tmp_path / "bars.png")]
    result = python.run("-m", "benchmarks.matching", *words)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^\| 7 boxes +\| Detectron2 .*\| +1\.00 \|", result.stdout, re.MULTILINE)
    assert "Ratios matter" in result.stdout
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_sides_that_compute_something_else_are_not_timed(run, monkeypatch):
    steeper = ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", 2.001)
    monkeypatch.setitem(loss.LOSSES, "focal", (steeper, *loss.LOSSES["focal"][1:]))
    with pytest.raises(SystemExit, match=r"^error: losses .*, focal: plugin: value: differs from the reference by"):
        run("loss", "--classes", *ONE_CASE)


def test_what_does_not_fit_into_memory_is_left_out(run, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 50_000)
    figures, rows = run("loss", "--classes", "1", "40", *ONE_CASE)
    assert_table_is_that_of_the_figures(figures, rows)
    small, large = [case["implementations"]["Detectron2"] for case in figures["cases"] if "classes" in case["name"]]
    assert small["skipped"] is None
    assert re.fullmatch(r"needs about \d\.\d GB, 0\.0 GB are available", large["skipped"])
    assert large["seconds"] == [] and large["peak_bytes"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "tpu3"], "--device"),
        (["--device", "mps"], "cpu or cuda, got mps"),
        (["--rounds", "0"], "must be at least 1, got 0"),
        (["--sizes", "0"], "must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(words, message, capsys):
    with pytest.raises(SystemExit):
        main("benchmarks.training", words)
    assert message in capsys.readouterr().err
