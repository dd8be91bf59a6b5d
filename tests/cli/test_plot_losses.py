"""``python -m retina_plugin plot-losses``."""

import json
import re
from pathlib import Path

import pytest

from retina_plugin.__main__ import main

FOCAL = {"name": "focal", "loss": "focal", "gamma": 2.0, "ap": [34.0, 34.2]}
FOCAL_STAR = {"name": "star", "loss": "focal_star", "gamma": 2.0, "beta": 1.0, "ap": [33.8, None]}
CROSS_ENTROPY = {"name": "ce", "loss": "cross_entropy", "ap": [31.1]}


@pytest.fixture
def plot(tmp_path, capsys):
    """Runs the command on the given rows, or on a file of the given text, and returns the printed paths or status."""

    def plot(results):
        file = tmp_path / "results.json"
        file.write_text(results if isinstance(results, str) else json.dumps({"rows": results}))
        if status := main(["plot-losses", str(tmp_path / "figures"), "--ablation", str(file)]):
            return status
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return plot


def test_prints_the_six_files_that_it_writes_to_the_default_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["plot-losses"])
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(paths) == 6
    assert sorted(paths) == sorted((tmp_path / "output" / "figures").resolve().iterdir())


def test_results_of_an_ablation_add_figure_7(plot):
    paths = plot([FOCAL, FOCAL_STAR, CROSS_ENTROPY])
    assert [path.name for path in paths[6:]] == ["figure7_focal_star_settings.png", "figure7_focal_star_settings.svg"]
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize(
    "results, message",
    [
        ("{not json", "results.json is not JSON"),
        ("[]", "is not what projects/LossAblation writes"),
        ('{"rows": [1]}', "is not what projects/LossAblation writes"),
        ([{"name": "no loss"}], "is not what projects/LossAblation writes"),
        ([FOCAL, CROSS_ENTROPY], "has no row with the loss focal_star"),
        ([FOCAL_STAR, CROSS_ENTROPY], "has no AP of the loss focal,"),
        ([FOCAL_STAR, {**FOCAL, "ap": [None]}], "has no AP of the loss focal,"),
        ([FOCAL, {**FOCAL_STAR, "ap": 33.8}], "ap must be a list"),
        ([FOCAL, {**FOCAL_STAR, "ap": [float("nan")]}], "ap must be a list"),
        ([FOCAL, {**FOCAL_STAR, "beta": None}], "gamma and beta must be numbers"),
        ([FOCAL, {"loss": "focal_star", "ap": [33.8]}], "gamma and beta must be numbers"),
    ],
)
def test_results_that_cannot_be_used_are_refused_before_anything_is_written(plot, tmp_path, results, message, capsys):
    assert plot(results) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "figures").exists()


def test_a_missing_results_file_is_said_in_a_line(tmp_path, capsys):
    assert main(["plot-losses", str(tmp_path / "figures"), "--ablation", str(tmp_path / "none.json")]) == 2
    message = "error: No ablation results .*none.json. projects/LossAblation writes them"
    assert re.match(message, capsys.readouterr().err)
