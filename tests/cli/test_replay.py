"""``python -m retina_plugin replay``."""

import math
import random
import re

import pytest
import torch

from retina_plugin.__main__ import main

from ..engine.small import make_batches, make_cfg, make_model, make_step, run


def record(folder, seed, spoil, *opts):
    """The file of a step that ``spoil(model, batch)`` made not finite."""
    cfg = make_cfg("OUTPUT_DIR", str(folder), *opts)
    model, (batch,) = make_model(cfg, seed).float(), make_batches(seed, 1)
    spoil(model, batch)
    run(make_step(cfg, model, [batch]), 1)
    return str(folder / "divergence" / "iteration_0_rank_0.pth")


def huge_weight(model, batch):
    with torch.no_grad():
        model.head.cls_score.weight.fill_(1e38)


def nan_pixel(model, batch):
    batch[2]["image"][0, 5, 5] = math.nan


def exit_code(*arguments):
    return main(["replay", *map(str, arguments)])


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_reproduces_the_step_and_says_where_it_went_wrong(seed, tmp_path, capsys, num_micro_batches):
    file = record(tmp_path, seed, nan_pixel, "SOLVER.ACCUMULATE_STEPS", num_micro_batches)
    assert exit_code("--device", "cpu", file) == 0
    out = capsys.readouterr().out
    assert f"Iteration 0 of process 0 of 1, learning rate 0.01, 4 images in {num_micro_batches} micro-batches." in out
    recorded, now = (re.search(rf"{title}: (.*)", out)[1] for title in ("In the training", "Now"))
    assert recorded.startswith("loss_cls nan") and now.startswith("loss_cls nan")
    assert "input: id 2 street/2.jpg: 1 values of its pixels are not finite" in out
    assert "first module whose result is not finite: backbone.stem" in out
    assert [level in out for level in ("\np3 ", "\np4 ", "\np5 ")] == [True] * 3
    assert re.search(r"largest gradients \(norm\)\n +nan ", out)
    alone = out[out.index("images by themselves") :]
    losses = re.findall(r"(id \d) street/\d.jpg, 64 x 64 pixels\n  losses: loss_cls (\S+),", alone)
    assert [(name, math.isnan(float(loss))) for name, loss in losses] == [(f"id {i}", i == 2) for i in range(4)]
    assert re.search(r"box 0: class \d, [\d.]+ x [\d.]+ pixels at \([\d.]+, [\d.]+\)\n", alone)
    assert alone.count("no boxes") == 1 and "The result is not finite, as in the training." in alone


def test_losses_of_a_finite_step_are_those_of_the_training(seed, tmp_path, capsys):
    """The gradient alone is not finite."""

    def spoil(model, batch):
        model.head.cls_score.weight.register_hook(lambda gradient: gradient * math.inf)

    file = record(tmp_path, seed, spoil)
    assert exit_code("--device", "cpu", file) == 1, "the hook is not in the file"
    out = capsys.readouterr().out
    recorded, now = (re.search(rf"{title}: (.*), grad_norm", out)[1] for title in ("In the training", "Now"))
    assert recorded == now and "nan" not in now and "run again, the step is finite" in out
    losses = [float(x) for x in re.findall(r"  losses: loss_cls (\S+), loss_box_reg", out)]
    assert sum(losses) == pytest.approx(float(re.match(r"loss_cls (\S+),", now)[1]), rel=1e-4)
    assert "The result is finite here." in out


def test_marks_degenerate_boxes(seed, tmp_path, capsys):
    def spoil(model, batch):
        nan_pixel(model, batch)
        batch[0]["instances"].gt_boxes.tensor[1] = torch.tensor([8.0, 8.0, 8.0, 20.0])

    assert exit_code("--device", "cpu", record(tmp_path, seed, spoil)) == 0
    assert re.search(r"box 1: class \d, 0 x 12 pixels at \(8, 8\)  DEGENERATE", capsys.readouterr().out)


def test_tries_another_precision_and_other_settings(seed, tmp_path, capsys):
    file = record(tmp_path, seed, huge_weight)
    assert exit_code("--device", "cpu", file) == 0
    capsys.readouterr()
    exit_code("--device", "cpu", "--precision", "bf16", file)
    assert "Again, on cpu in bf16:" in capsys.readouterr().out
    exit_code("--device", "cpu", file, "MODEL.RETINANET.LOSS_NORMALIZER", "positives")
    assert "Again, on cpu in fp32, MODEL.RETINANET.LOSS_NORMALIZER positives:" in capsys.readouterr().out


def test_what_cannot_be_run_is_an_error_in_a_line(seed, tmp_path, capsys):
    def error(*arguments):
        capsys.readouterr()
        assert exit_code(*arguments) == 2
        return capsys.readouterr().err

    assert error(tmp_path / "nowhere.pth").startswith(f"error: no file {tmp_path}/nowhere.pth")
    (tmp_path / "text.pth").write_text("text")
    assert f"error: {tmp_path}/text.pth is no file that a divergence leaves" in error(tmp_path / "text.pth")
    torch.save({"model": {}}, tmp_path / "weights.pth")
    assert "is no file that a divergence leaves" in error(tmp_path / "weights.pth")
    file = record(tmp_path, seed, nan_pixel)
    failed = error("--device", "cpu", file, "MODEL.FPN.OUT_CHANNELS", 32)
    assert failed.startswith("error: the model of the step cannot be built")
    assert "Did you mean MODEL.FPN.OUT_CHANNELS?" in error(file, "MODEL.FPN.OUT_CHANNEL", 32)


JUNK = (None, "x", -1, 2.5, math.nan, [], {}, [1], {"a": 1}, True, 10**30, torch.zeros(0), torch.zeros(3, 4, 5))


def places(value, place=()):
    """Every place in nested dicts and lists."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*place, key))


@pytest.mark.parametrize("attempt", range(20))
def test_a_file_with_a_field_missing_or_of_another_type_is_no_traceback(seed, tmp_path, capsys, attempt):
    file = record(tmp_path, seed, nan_pixel)
    data = torch.load(file, weights_only=True)
    *above, last = random.choice([place for place in places(data) if place[0] != "model" or len(place) < 2])
    inner = data
    for key in above:
        inner = inner[key]
    if isinstance(inner, dict) and random.random() < 0.3:
        del inner[last]
    else:
        inner[last] = random.choice(JUNK)
    torch.save(data, file)
    capsys.readouterr()
    status = exit_code("--device", "cpu", file)
    error = capsys.readouterr().err
    assert status in (0, 1, 2)
    assert status < 2 or (error.startswith("error: ") and error.count("\n") == 1), (above, last)


def test_fields_that_are_damaged_are_named(seed, tmp_path, capsys):
    file = record(tmp_path, seed, nan_pixel)
    data = torch.load(file, weights_only=True)
    for change, message in (
        ({"learning_rate": "x", "rank": None}, "is damaged: learning_rate, rank missing, or of another type"),
        ({"config": "a: [b"}, "is not YAML (line 1, column"),
        ({"config": "3"}, "is not a YAML mapping"),
        ({"batch": [{"instances": None}]}, "is damaged: its images cannot be read (TypeError("),
        ({"random_state": {}}, "the step cannot be run (KeyError: 'cpu')"),
    ):
        torch.save({**data, **change}, file)
        assert exit_code("--device", "cpu", file) == 2
        assert f"{file}{': ' if message[0] == 't' else ' '}{message}" in capsys.readouterr().err
