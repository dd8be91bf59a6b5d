"""projects/LossAblation: rows, data, resuming, the report."""

import argparse
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

import retina_plugin

import torch  # isort: skip
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin.config.imports import import_modules
from retina_plugin.data.datasets import digits

NAMES = ("sparse_digits_train", "sparse_digits_test")
CONFIG = "projects/LossAblation/configs/ablation.yaml"


@pytest.fixture(scope="module")
def project(request, tmp_path_factory, python):
    """The project's modules, with its data set in a folder of the tests. Its trainings start in a moment."""

    def run(command, stdout, env, **_):
        done = python.run(*command[1:], **env)
        stdout.write(done.stdout + done.stderr)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINA_PLUGIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(request.config.rootpath)
        names = ("ablation", "report", "rows")
        modules = import_modules(f"projects/LossAblation/loss_ablation/{name}.py" for name in names)
        patch.setattr(modules[0], "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))
        yield SimpleNamespace(**dict(zip(names, modules)))
        for name in [name for name in sys.modules if name.startswith("loss_ablation")]:
            del sys.modules[name]
        for name in NAMES:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory):
    """The data sets of the trainings with few images, in place of those that they would build."""
    cache = tmp_path_factory.mktemp("small_sets")
    with pytest.MonkeyPatch.context() as patch:
        for split in digits.SPLITS.values():
            patch.setitem(split, "images", 24)
        for recipe in (digits.DigitsRecipe(), digits.DigitsRecipe(name="sparse_digits", side=192, max_digits=1)):
            digits.build_digits(cache / f"{recipe.name}_v{digits.RECIPE_VERSION}", recipe)
    return cache


@pytest.fixture
def args(tmp_path, small_sets, monkeypatch):
    monkeypatch.setenv("RETINA_PLUGIN_CACHE", str(small_sets))

    torch.save({"model": {"loss_normalizer.ema": torch.tensor(100.0)}}, tmp_path / "start.pth")
    return argparse.Namespace(output=tmp_path, jobs=1, opts=["SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TEST", "32"])


def result(ap, ap50, seconds=60):
    return {"ap": ap, "ap50": ap50, "arguments": [], "seconds": seconds, "device": "CPU"}


def test_every_row_is_what_its_name_says(project):
    seen = {}
    for row in project.rows.ROWS:
        cfg = get_cfg()
        retina_plugin.add_retina_config(cfg)
        retina_plugin.merge_config(cfg, CONFIG, row.overrides)
        loss = retina_plugin.losses.build_classification_loss(cfg)
        seen[row.name] = (type(loss).__name__, cfg.MODEL.RETINANET.PRIOR_PROB, str(loss))
    assert len(set(seen.values())) == len(project.rows.ROWS) == len({row.slug for row in project.rows.ROWS})
    for name, (_, prior, text) in seen.items():
        assert prior == (0.5 if "no prior" in name else 0.01)
        for word in ("gamma", "beta", "alpha"):
            if f"{word} " in name:
                value = float(name.split(f"{word} ")[1].split(",")[0])
                assert f"{word}={value}" in text, (name, text)
    assert seen["OHEM 1:3"][0] == seen["OHEM"][0] == "OnlineHardExampleMining"
    assert "one_to_three=True" in seen["OHEM 1:3"][2] and "one_to_three=False" in seen["OHEM"][2]


def test_the_data_has_the_imbalance_of_the_paper(project):
    counts = project.report.count_anchors(CONFIG, [])
    assert counts["negative"] >= 1000 * counts["positive"] > 0
    cells = sum(math.ceil(192 / stride) ** 2 for stride in (8, 16, 32, 64, 128))
    assert sum(counts.values()) == 9 * cells * len(DatasetCatalog.get("sparse_digits_train"))
    assert max(len(record["annotations"]) for record in DatasetCatalog.get("sparse_digits_train")) == 1


@pytest.mark.slow
def test_a_run_is_done_once_and_only_with_its_settings(project, args, monkeypatch, capsys):
    row = next(row for row in project.rows.ROWS if row.name == "OHEM")
    monkeypatch.setattr(project.ablation, "ROWS", [row])
    args.seeds = [5]
    first = project.ablation.run_all(args)
    assert "[1/1] OHEM, seed 5: AP" in capsys.readouterr().out
    folder = args.output / row.slug / "seed_5"
    config = (folder / "config.yaml").read_text()
    assert "CLS_LOSS: ohem\n" in config and "SEED: 5" in config
    assert not list(folder.glob("*.pth"))
    (folder / "train.log").unlink()
    assert project.ablation.run_all(args) == first == {"OHEM": {5: project.ablation.read_result(row, 5, args)}}
    assert not (folder / "train.log").exists(), "it was not trained again"
    args.opts = [*args.opts, "SOLVER.BASE_LR", "0.01"]
    with pytest.raises(RuntimeError, match="other settings"):
        project.ablation.run_all(args)


@pytest.mark.slow
def test_divergence_is_a_result_and_another_failure_is_not(project, args):
    row = project.rows.ROWS[0]
    args.opts = ["SOLVER.MAX_ITER", "9", "SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    assert project.ablation.run_once(row, 1, args)["ap"] is None
    args.opts = ["MODEL.RETINANET.NUM_CLASSES", "3"]
    with pytest.raises(RuntimeError, match="seed 2 failed: error: .*train.log"):
        project.ablation.run_once(row, 2, args)
    assert not (args.output / row.slug / "seed_2" / "result.json").exists()


def test_report(project, tmp_path):
    results = {row.name: {2: result(20.0, 40.0), 1: result(10.0, 35.5)} for row in project.rows.ROWS}
    results["CE, no prior"] = {1: result(None, None), 2: result(None, None)}
    results["OHEM"] = {1: result(None, None), 2: result(7.25, 9.0)}
    paths = project.report.write_report(tmp_path, CONFIG, [], results)
    assert [path.name for path in paths] == ["results.json", "results.md", "results.png", "results.svg"]
    assert all(path.stat().st_size > 500 for path in paths)
    lines = paths[1].read_text().splitlines()
    hours = round(len(project.rows.ROWS) * 2 / 60, 2)
    assert lines[0].startswith(f"2 seeds, {hours} hours")
    table = {line.split("|")[1].strip(): line for line in lines[4:]}
    assert "| 15.0 (10.0 to 20.0) | 37.8 (35.5 to 40.0) | 34.0 | Table 1b |" in table["FL, gamma 2, alpha 0.25"]
    assert "| diverged 2 of 2 times | diverged 2 of 2 times |  |" in table["CE, no prior"]
    assert "| 7.2 (7.2 to 7.2), diverged 1 of 2 times |" in table["OHEM"]
    record = json.loads(paths[0].read_text())
    star = next(row for row in record["rows"] if row["name"] == "FL*, gamma 4, beta 0")
    assert (star["loss"], star["gamma"], star["beta"], star["ap"]) == ("focal_star", 4.0, 0.0, [10.0, 20.0])


@pytest.mark.slow
def test_all_runs_start_from_the_backbone_alone(project, args, tmp_path):
    (tmp_path / "start.pth").unlink()
    args.opts = ["SOLVER.MAX_ITER", "1", "INPUT.MIN_SIZE_TEST", "32"]
    project.ablation.make_start(args)
    assert "CLS_LOSS: cross_entropy" in (tmp_path / "start" / "config.yaml").read_text()
    trained = torch.load(tmp_path / "start" / "model_final.pth", weights_only=True)["model"]
    start = torch.load(tmp_path / "start.pth", weights_only=True)["model"]
    assert {k for k in trained if k.startswith("backbone.")} == set(start)
    assert all(torch.equal(trained[key], value) for key, value in start.items())
    (tmp_path / "start" / "model_final.pth").unlink()
    project.ablation.make_start(args)
    assert not (tmp_path / "start" / "model_final.pth").exists(), "it was not trained again"
    args.opts = ["SOLVER.MAX_ITER", "2"]
    with pytest.raises(RuntimeError, match="other settings"):
        project.ablation.make_start(args)
