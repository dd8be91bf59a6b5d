"""Rows of the class layer go with the names of their classes, for every anchor, and no stale one stays."""

import logging
import math
import random
import string

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch import nn

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.checkpoint.class_remap import COCO_NAMES, LAYER, row_sources, take_rows

from .conftest import THEIRS, as_arrays, assert_same, copies, small_model

PRIOR_BIAS = -math.log((1 - 0.01) / 0.01)
ANCHORS = 9


def some_names(count):
    return random.sample(["".join(pair) for pair in zip(string.ascii_lowercase, string.ascii_uppercase)], count)


def by_hand(fresh, loaded, file_names, model_names):
    """The definition: row a * K + k of the model is row a * K' + k' of the file, where both classes have one name."""
    expected = fresh.clone()
    for anchor in range(ANCHORS):
        for k, name in enumerate(model_names):
            for old, other in enumerate(file_names):
                if name == other:
                    expected[anchor * len(model_names) + k] = loaded[anchor * len(file_names) + old]
    return expected


@pytest.mark.parametrize("shape", [(4, 3, 3), ()], ids=["weight", "bias"])
def test_rows_are_those_of_a_loop(shape):
    for _ in range(30):
        pool = some_names(12)
        old, new = (random.sample(pool, random.randint(1, 12)) for _ in range(2))
        fresh, loaded = (torch.randn(ANCHORS * len(names), *shape) for names in (new, old))
        rows = take_rows(fresh, loaded, row_sources(old, new, len(old), len(new)), ANCHORS)
        assert torch.equal(rows, by_hand(fresh, loaded, old, new))


def save(model, names, folder):
    RetinaCheckpointer(model, str(folder), class_names=names).save("trained")
    return str(folder / "trained.pth")


def trained_model(num_classes, *opts):
    return small_model("MODEL.RETINANET.NUM_CLASSES", num_classes, *opts, random=True)


CASES = {
    "fewer, permuted": (5, lambda names: [names[3], names[0]]),
    "more": (3, lambda names: ["new1", *names, "new2"]),
    "as many, permuted": (4, lambda names: names[::-1]),
    "as many, some others": (4, lambda names: [names[2], "x", names[0], "y"]),
    "nothing in common": (4, lambda names: ["w", "x", "y", "z"]),
}


@pytest.mark.parametrize("case", CASES)
def test_fine_tuning_keeps_the_rows_of_classes_that_stay(case, tmp_path, caplog):
    count, choose = CASES[case]
    old = some_names(count)
    new = choose(old)
    trained = trained_model(count)
    model = small_model("MODEL.RETINANET.NUM_CLASSES", len(new))
    fresh, loaded = copies(model), trained.state_dict()
    with caplog.at_level(logging.INFO):
        RetinaCheckpointer(model, class_names=new).load(save(trained, old, tmp_path))

    for name in ("weight", "bias"):
        key = f"{LAYER}.{name}"
        assert torch.equal(model.state_dict()[key], by_hand(fresh[key], loaded[key], old, new))
    bias = model.head.cls_score.bias.view(ANCHORS, len(new))
    for k, name in enumerate(new):
        if name not in old:
            assert torch.allclose(bias[:, k], torch.tensor(PRIOR_BIAS)), "the prior, and no stale bias"
    assert_same(*({k: v for k, v in m.items() if not k.startswith(LAYER)} for m in (model.state_dict(), loaded)))

    kept = len(set(old) & set(new))
    if kept:
        assert f"The rows of {kept} of {len(new)} classes were taken by name" in caplog.text
        assert "| head.cls_score " in caplog.text
    else:
        assert f"The rows of all {len(new)} classes keep their initialization: no class has a name in" in caplog.text


def test_equal_names_are_loaded_as_they_are_also_twice_the_same(tmp_path):
    trained, names = trained_model(3), ["cat", "cat", "dog"]
    model = small_model("MODEL.RETINANET.NUM_CLASSES", 3)
    RetinaCheckpointer(model, class_names=names).load(save(trained, names, tmp_path))
    assert_same(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize("names", [None, ["a", "b"]], ids=["no names at all", "the data's alone"])
def test_without_names_in_the_file_another_count_initializes_all_rows(names, tmp_path):
    trained = trained_model(5)
    torch.save({"model": trained.state_dict()}, tmp_path / "old.pth")
    model = small_model("MODEL.RETINANET.NUM_CLASSES", 2)
    fresh = copies(model)
    RetinaCheckpointer(model, class_names=names).load(str(tmp_path / "old.pth"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh if key.startswith(LAYER) else trained.state_dict())[key]), key
    assert torch.allclose(model.head.cls_score.bias, torch.tensor(PRIOR_BIAS))


def test_without_names_an_equal_count_is_loaded_as_it_is(tmp_path):
    trained = trained_model(2)
    torch.save({"model": trained.state_dict()}, tmp_path / "old.pth")
    model = small_model("MODEL.RETINANET.NUM_CLASSES", 2)
    RetinaCheckpointer(model, class_names=["a", "b"]).load(str(tmp_path / "old.pth"))
    assert_same(model.state_dict(), trained.state_dict())


def test_the_names_of_coco_are_those_of_its_data_set():
    assert list(COCO_NAMES) == MetadataCatalog.get("coco_2017_val").thing_classes


def test_a_model_zoo_file_of_80_classes_has_the_names_of_coco(tmp_path):
    zoo = small_model(*THEIRS, random=True)
    (tmp_path / "zoo.pkl").write_bytes(zoo_bytes(zoo))
    names = ["zebra", "digger", "person", "dog"]
    model = small_model("MODEL.RETINANET.NUM_CLASSES", 4)
    fresh, loaded = copies(model), zoo.state_dict()
    RetinaCheckpointer(model, class_names=names).load(str(tmp_path / "zoo.pkl"))
    for key in (f"{LAYER}.weight", f"{LAYER}.bias"):
        rows = model.state_dict()[key].unflatten(0, (ANCHORS, 4))
        old = loaded[key].unflatten(0, (ANCHORS, 80))
        assert torch.equal(rows[:, 0], old[:, 22]) and torch.equal(rows[:, 2], old[:, 0])
        assert torch.equal(rows[:, 3], old[:, 16])
        assert torch.equal(rows[:, 1], fresh[key].unflatten(0, (ANCHORS, 4))[:, 1])


def zoo_bytes(model):
    import pickle

    return pickle.dumps({"model": as_arrays(model), "__author__": "Detectron2 Model Zoo"}, 2)


def test_detectron2s_own_retinanet_is_fine_tuned_likewise(tmp_path):
    old, new = ["a", "b", "c"], ["c", "d"]
    trained = trained_model(3, *THEIRS)
    model = small_model(*THEIRS, "MODEL.RETINANET.NUM_CLASSES", 2)
    fresh, loaded = copies(model), trained.state_dict()
    RetinaCheckpointer(model, class_names=new).load(save(trained, old, tmp_path))
    key = f"{LAYER}.weight"
    assert torch.equal(model.state_dict()[key], by_hand(fresh[key], loaded[key], old, new))


@pytest.mark.parametrize(
    "anchors", [("[[0.5, 1.0]]", 6), ("[[0.5, 1.0, 2.0, 3.0]]", 12)], ids=["fewer anchors", "more anchors"]
)
@pytest.mark.parametrize("names", [["a", "b"], None], ids=["names", "no names"])
def test_another_number_of_anchors_is_refused_with_the_shapes(anchors, names, tmp_path):
    ratios, count = anchors
    trained = trained_model(2, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ratios)
    model = trained_model(3)
    before = copies(model)
    with pytest.raises(CheckpointError) as error:
        RetinaCheckpointer(model, class_names=["b", "c", "d"]).load(save(trained, names, tmp_path))
    if names:
        assert f"head.cls_score.weight has {2 * count} rows for its 2 classes, and 27 in the model" in str(error.value)
    else:
        assert f"head.bbox_pred.bias: ({4 * count},) in the file, (36,) in the model" in str(error.value)
    assert_same(model.state_dict(), before)


def test_another_width_is_refused_with_the_shapes(tmp_path):
    trained = trained_model(2, "MODEL.FPN.OUT_CHANNELS", 64)
    model = trained_model(3)
    with pytest.raises(
        CheckpointError, match=r"head.cls_subnet.0.weight: \(64, 64, 3, 3\) in the file, \(32, 32, 3, 3\)"
    ):
        RetinaCheckpointer(model, class_names=["b", "c", "d"]).load(save(trained, ["a", "b"], tmp_path))


@pytest.mark.parametrize("names", ["cat", [1, 2], {"a": 1}])
def test_names_that_are_no_list_of_names_are_refused(names, tmp_path):
    trained = trained_model(2)
    torch.save({"model": trained.state_dict(), "class_names": names}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="m.pth: its class_names are no list of names"):
        RetinaCheckpointer(trained).load(str(tmp_path / "m.pth"))


@pytest.mark.parametrize(
    "old, new, message",
    [
        (["a", "b", "c"], ["a", "c", "b"], "class 1 is 'b' in the weights and 'c' in the data"),
        (["a", "b", "c"], ["a", "b", "x"], "class 2 is 'c' in the weights and 'x' in the data"),
        (
            ["a", "b", "c"],
            ["a", "b"],
            "their 3 classes are not the 2 of the data: class 2 is 'c' in the weights and nothing",
        ),
    ],
)
def test_evaluation_remaps_nothing(old, new, message, tmp_path):
    file = save(trained_model(len(old)), old, tmp_path)
    model = trained_model(len(new))
    before = copies(model)
    with pytest.raises(CheckpointError, match=message):
        RetinaCheckpointer(model, strict=True, class_names=new).load(file)
    assert_same(model.state_dict(), before)


def test_a_model_without_rows_of_classes_is_loaded_as_any(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    file = save(model, ["a", "b"], tmp_path)
    other = nn.Sequential(nn.Linear(3, 2))
    RetinaCheckpointer(other, class_names=["b", "c"]).load(file)
    assert_same(other.state_dict(), model.state_dict())
