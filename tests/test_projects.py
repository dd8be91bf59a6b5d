"""The projects run as their READMEs say, and later commands find them again."""

import json

import pytest


def command_of(root, name):
    """The last indented line of the README, a command of the repository's root, without the interpreter."""
    readme = (root / "projects" / name / "README.md").read_text()
    return [line.split() for line in readme.splitlines() if line.startswith("    .venv/bin/python")][-1][1:]


@pytest.mark.slow
def test_pyramid_classifier_trains_and_its_run_is_read_again(python, request, tmp_path):
    root = request.config.rootpath
    command = command_of(root, "PyramidClassifier")
    assert command[-2] == "SOLVER.MAX_ITER"
    options = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", str(tmp_path), "LOG_PERIOD", "1")
    result = python.run(*command[:-1], "3", *options)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = [record["loss_cls"] for record in records if "loss_cls" in record]
    assert len(losses) == 3 and all(0 < loss < 5 for loss in losses)
    module = str(root / "projects" / "PyramidClassifier" / "pyramid_classifier" / "config.py")
    code = f"""
from retina_plugin.config import read_config
cfg = read_config({str(tmp_path / "config.yaml")!r})
assert cfg.IMPORTS == [{module!r}] and cfg.MODEL.PYRAMID_CLASSIFIER.POSITIVE_WEIGHT == 2.0
from detectron2.modeling import build_model
print(type(build_model(cfg)).__module__)
"""
    result = python.run("-c", code, cwd=tmp_path)
    assert result.stdout.strip() == "pyramid_classifier.classifier", result.stderr
