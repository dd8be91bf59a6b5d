"""A folder belongs to one run: what is refused, and what moves away."""

import json
import os

import pytest
from detectron2.config import get_cfg

from retina_plugin import ConfigError
from retina_plugin.engine import argument_parser, prepare_output_dir


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def claim(cfg, *arguments):
    prepare_output_dir(cfg, argument_parser().parse_args(arguments))


def fill(folder, iteration=39):
    """What a run that was killed leaves, and two files of the user."""
    lines = [json.dumps({"iteration": i, "total_loss": 1.0}) for i in range(19, iteration + 20, 20)]
    (folder / "metrics.json").write_text("\n".join(lines) + '\n{"iterat')
    for name in (f"model_{iteration:07d}.pth", "model_0000019.pth", "log.txt", "log.txt.rank1", "config.yaml"):
        (folder / name).write_text("old")
    (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
    (folder / "inference").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "weights.pth").write_text("mine")


def test_a_new_run_in_the_folder_of_another_is_refused_with_what_is_there_and_three_ways_out(cfg, tmp_path):
    fill(tmp_path)
    with pytest.raises(ConfigError) as error:
        claim(cfg)
    assert str(error.value) == (
        f"OUTPUT_DIR {tmp_path} holds another run (2 checkpoints, the last one model_0000039.pth, after 40 iterations, "
        "metrics up to iteration 40). Go on with it: --resume. Keep it: choose another OUTPUT_DIR. Start anew here: "
        "--overwrite, which moves its files into previous_run_1"
    )


@pytest.mark.parametrize("name", ["last_checkpoint", "metrics.json", "model_final.pth"])
def test_any_of_its_results_makes_a_run(cfg, tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match="holds another run"):
        claim(cfg)


def test_logs_and_evaluations_alone_are_no_run(cfg, tmp_path):
    for name in ("log.txt", "config.yaml", "coco_instances_results.json"):
        (tmp_path / name).write_text("")
    claim(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "not there")
    claim(cfg)
    assert os.listdir(cfg.OUTPUT_DIR) == ["run.lock"]


def test_overwrite_moves_the_run_and_leaves_what_is_not_of_it(cfg, tmp_path):
    for number in (1, 2):
        fill(tmp_path, iteration=20 * number - 1)
        claim(cfg, "--overwrite")
        moved = tmp_path / f"previous_run_{number}"
        assert (moved / "last_checkpoint").read_text() == f"model_{20 * number - 1:07d}.pth"
        assert {"metrics.json", "log.txt", "log.txt.rank1", "config.yaml", "inference"} < set(os.listdir(moved))
        assert not {"notes.txt", "weights.pth"} & set(os.listdir(moved))
        previous = [f"previous_run_{n}" for n in range(1, number + 1)]
        assert sorted(os.listdir(tmp_path)) == ["notes.txt", *previous, "run.lock", "weights.pth"]
    claim(cfg)  # empty now
    claim(cfg, "--overwrite")
    assert not (tmp_path / "previous_run_3").exists(), "nothing to move, no folder"


def test_resuming_and_evaluating_leave_the_folder_alone(cfg, tmp_path):
    fill(tmp_path)
    claim(cfg, "--resume")
    before, machines = sorted(os.listdir(tmp_path)), ("--num-machines", "2", "--dist-url", "tcp://host:1")
    claim(cfg, "--resume")
    claim(cfg, "--eval-only")
    claim(cfg, "--overwrite", *machines, "--machine-rank", "1")  # the first machine does it
    for other in ("--resume", "--eval-only"):
        with pytest.raises(ConfigError, match="--overwrite and --.* exclude each other"):
            claim(cfg, "--overwrite", other)
    assert sorted(os.listdir(tmp_path)) == before
