"""Nothing is loaded by halves, and an evaluation takes nothing but the weights of its model."""

import logging
import os

import pytest
import torch
from iopath.common.file_io import PathHandler, PathManager

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer

from .conftest import assert_same, copies, small_model


class Counting:
    """A checkpointable that refuses states without a count, when half of it is loaded already."""

    def __init__(self, count):
        self.state = {"half": count, "count": count}

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state["half"] = state["half"]
        self.state["count"] = state["count"]


@pytest.fixture
def states():
    """(weights that fit, the model that they are loaded into)"""
    return copies(small_model(random=True)), small_model()


def write(folder, weights, **more):
    torch.save({"model": weights, **more}, folder / "model.pth")
    return str(folder / "model.pth")


def without(part):
    return lambda weights: {k: v for k, v in weights.items() if part not in k}


def with_one(name, value):
    return lambda weights: {**weights, name: value}


MISFITS = {
    "missing": (without("cls_subnet"), r"2 tensors are missing in the file:\n  head.cls_subnet.0.\{bias, weight\}"),
    "unexpected": (with_one("head.iou.weight", torch.ones(2)), r"1 tensors are not of this model:\n  head.iou.weight"),
    "another shape": (
        with_one("head.bbox_pred.bias", torch.ones(12)),
        r"head.bbox_pred.bias: \(12,\) in the file, \(36,\) in the model",
    ),
    "other classes": (
        lambda weights: {
            **weights,
            "head.cls_score.bias": torch.ones(27),
            "head.cls_score.weight": torch.ones(27, 32, 3, 3),
        },
        r"head.cls_score.bias: \(27,\) in the file, \(720,\) in the model",
    ),
    "not finite": (
        with_one("head.bbox_pred.bias", torch.full((36,), torch.nan)),
        "36 of 36 values of head.bbox_pred.bias",
    ),
    "of another model": (lambda weights: {"encoder.weight": torch.ones(3)}, "none of its 1 tensors is of this model"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_strict_checkpointer_refuses_and_changes_nothing(misfit, states, tmp_path, report):
    weights, model = states
    change, message = MISFITS[misfit]
    before = copies(model)
    with pytest.raises(CheckpointError, match=message) as error:
        RetinaCheckpointer(model, strict=True).load(write(tmp_path, change(weights)))
    assert str(error.value).startswith(f"weights {tmp_path}/model.pth: ")
    assert_same(model.state_dict(), before)
    report("Strict loading: what is said", misfit, str(error.value).replace(f"{tmp_path}/", "").replace("\n", " | "))


@pytest.mark.parametrize("misfit", ["another shape", "not finite", "of another model"])
def test_what_cannot_be_right_is_refused_in_training_too(misfit, states, tmp_path):
    weights, model = states
    change, message = MISFITS[misfit]
    before = copies(model)
    with pytest.raises(CheckpointError, match=message):
        RetinaCheckpointer(model).load(write(tmp_path, change(weights)))
    assert_same(model.state_dict(), before)


def test_both_kinds_of_misfits_are_in_one_error_and_long_lists_are_cut(states, tmp_path):
    weights, model = states
    others = {f"extra{i:02d}.weight": torch.ones(1) for i in range(30)}
    with pytest.raises(CheckpointError) as error:
        RetinaCheckpointer(model, strict=True).load(write(tmp_path, {**without("head.")(weights), **others}))
    text = str(error.value)
    assert "8 tensors are missing in the file:" in text and "30 tensors are not of this model:" in text
    assert "  extra19.weight\n  and 10 more" in text and "extra20" not in text


def test_training_takes_what_is_there_and_says_what_is_not(states, tmp_path, caplog):
    weights, model = states
    fresh = copies(model)
    part = {**without("head.")(weights), "old_head.weight": torch.ones(2)}
    with caplog.at_level(logging.INFO):
        rest = RetinaCheckpointer(model).load(write(tmp_path, part, note="mine"))
    assert rest == {"note": "mine"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith("head.") else weights)[name]), name
    assert "| head.cls_subnet " in caplog.text and "left out: old_head.weight" in caplog.text


def test_what_models_may_disagree_on_is_excepted(tmp_path):
    opts = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
    source, model = small_model(*opts), small_model(*opts)
    weights = {k: v for k, v in copies(source).items() if "num_batches_tracked" not in k and "ema" not in k}
    assert len(weights) < len(source.state_dict()) - 10
    weights.update({"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)})
    weights["anchor_generator.cell_anchors.3"] = torch.zeros(9, 4)
    RetinaCheckpointer(model, strict=True).load(write(tmp_path, weights))
    for name, value in model.state_dict().items():
        assert name not in weights or torch.equal(value, weights[name])


def test_nothing_to_evaluate_is_an_error_and_nothing_to_start_from_is_none():
    model = small_model()
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty: there are no weights to evaluate"):
        RetinaCheckpointer(model, strict=True).load("")
    assert RetinaCheckpointer(model).load("") == {}


def test_a_state_that_does_not_fit_leaves_model_and_run_as_they_were(states, tmp_path):
    weights, model = states
    before, run = copies(model), Counting(3)
    checkpointer = RetinaCheckpointer(model, trainer=run)
    with pytest.raises(CheckpointError, match="the model fits, but not the state of the run .*without --resume"):
        checkpointer.load(write(tmp_path, weights, trainer={"half": 8}))
    assert_same(model.state_dict(), before)
    assert run.state == {"half": 3, "count": 3}
    checkpointer.load(write(tmp_path, weights, trainer={"half": 8, "count": 8}))
    assert_same(model.state_dict(), weights)
    assert run.state == {"half": 8, "count": 8}


def test_a_run_is_resumed_with_everything_or_not_at_all(states, tmp_path):
    weights, model = states
    file = write(tmp_path, without("cls_subnet")(weights), trainer={"half": 8, "count": 8})
    run = Counting(3)
    with pytest.raises(CheckpointError, match="missing in the file"):
        RetinaCheckpointer(model, trainer=run).load(file)
    assert run.state["count"] == 3
    RetinaCheckpointer(model, trainer=run).load(file, checkpointables=[])  # a new run from the same weights
    assert run.state["count"] == 3


def test_last_checkpoint_is_resumed_and_a_stale_one_is_named(states, tmp_path):
    weights, model = states
    source = small_model(random=True)
    RetinaCheckpointer(source, str(tmp_path), trainer=Counting(5)).save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    run = Counting(0)
    rest = RetinaCheckpointer(model, str(tmp_path), trainer=run).resume_or_load("elsewhere.pth", resume=True)
    assert rest == {"iteration": 4} and run.state["count"] == 5
    assert_same(model.state_dict(), source.state_dict())
    (tmp_path / "model_0000004.pth").unlink()
    with pytest.raises(CheckpointError, match="model_0000004.pth: there is no such file"):
        RetinaCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)


class _Folder(PathHandler):
    """Addresses "elsewhere://NAME" for files of a folder."""

    def __init__(self, folder):
        self.folder = folder

    def _get_supported_prefixes(self):
        return ["elsewhere://"]

    def _get_local_path(self, path, **_):
        return str(self.folder / path.removeprefix("elsewhere://run/"))

    def _exists(self, path, **_):
        return os.path.exists(self._get_local_path(path))

    def _open(self, path, mode="r", **_):
        return open(self.folder / path.removeprefix("elsewhere://run/"), mode)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_checkpoint_that_is_not_the_last_leaves_the_last_one_named(tmp_path, elsewhere):
    checkpointer = RetinaCheckpointer(torch.nn.Linear(1, 1), "elsewhere://run" if elsewhere else str(tmp_path))
    if elsewhere:
        checkpointer.path_manager = PathManager()
        checkpointer.path_manager.register_handler(_Folder(tmp_path))
    checkpointer.save("model_best", is_last=False)
    assert (tmp_path / "model_best.pth").exists() and not (tmp_path / "last_checkpoint").exists()
    checkpointer.save("model_1", iteration=1)
    checkpointer.save("model_best", is_last=False, iteration=2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_1.pth"
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 2


def test_a_checkpointers_own_path_manager_is_used_for_reading(tmp_path):
    """As Detectron2's checkpointers use theirs; Detectron2's own manager does not know these addresses."""
    source, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    manager = PathManager()
    manager.register_handler(_Folder(tmp_path))
    for written in (source, model):
        checkpointer = RetinaCheckpointer(written, "elsewhere://run", run=Counting(int(written is source)))
        checkpointer.path_manager = manager
        if written is source:
            assert not checkpointer.has_checkpoint()
            checkpointer.save("model_1", iteration=1)
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 1}
    assert checkpointer.checkpointables["run"].state["count"] == 1
    assert torch.equal(model.weight, source.weight)
    checkpointer.load("elsewhere://run/model_1.pth")
    with pytest.raises(
        CheckpointError, match="elsewhere://run/model_2.pth: there is no such file. Did you mean model_1"
    ):
        checkpointer.load("elsewhere://run/model_2.pth")


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block1 = torch.nn.ModuleDict({"layer1": torch.nn.Linear(2, 3)})


def test_names_are_matched_by_heuristics_where_the_path_asks_for_it(tmp_path):
    """Main's Detectron2 takes this query (its tests/test_checkpoint.py)."""
    weights = {"layer1.weight": torch.rand(3, 2), "layer1.bias": torch.rand(3)}
    model, file = Block(), write(tmp_path, weights)
    with pytest.raises(CheckpointError, match="none of its 2 tensors is of this model"):
        RetinaCheckpointer(model).load(file)
    with pytest.raises(CheckpointError, match="none of its 2 tensors is of this model"):
        RetinaCheckpointer(model).load(f"{file}?matching_heuristics=False")
    RetinaCheckpointer(model).load(f"{file}?matching_heuristics=True")
    assert torch.equal(model.block1["layer1"].weight, weights["layer1.weight"])
    assert torch.equal(model.block1["layer1"].bias, weights["layer1.bias"])
    with pytest.raises(CheckpointError, match="matching_heuristics is True or False, not '1'"):
        RetinaCheckpointer(model).load(f"{file}?matching_heuristics=1")
    os.rename(file, f"{file}?matching_heuristics=True")  # a name that a file has is only that
    with pytest.raises(CheckpointError, match="none of its 2 tensors is of this model"):
        RetinaCheckpointer(model).load(f"{file}?matching_heuristics=True")
