"""Files of Detectron2's model zoo and of Caffe2 give what Detectron2's own checkpointer makes of them."""

import logging
import pickle
import re

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.checkpoint.class_remap import COCO_NAMES

from .conftest import THEIRS, as_arrays, assert_same, assert_same_predictions, copies, python2_pickle, small_model

OURS_ALONE = "loss_normalizer.ema"


def image():
    return {"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "height": 96, "width": 128}


@pytest.mark.parametrize("python", [2, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_a_zoo_file_lands_on_every_key_and_gives_detectron2s_outputs(python, strict, tmp_path):
    source = small_model(*THEIRS, random=True)
    # As older files of the zoo: what comes from the configuration today is in them, too.
    weights = {**as_arrays(source), "pixel_mean": np.zeros((3, 1, 1), "f4"), "pixel_std": np.ones((3, 1, 1), "f4")}
    weights["anchor_generator.cell_anchors.0"] = np.zeros((9, 4), "f4")
    content = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    data = python2_pickle(content) if python == 2 else pickle.dumps(content, 2)
    (tmp_path / "model_final.pkl").write_bytes(data)

    theirs, ours = small_model(*THEIRS), small_model()
    DetectionCheckpointer(theirs).load(str(tmp_path / "model_final.pkl"))
    RetinaCheckpointer(ours, strict=strict, class_names=COCO_NAMES).load(str(tmp_path / "model_final.pkl"))

    state = ours.state_dict()
    assert state.pop(OURS_ALONE) == 100
    assert_same(state, theirs.state_dict())
    assert_same(state, source.state_dict())
    assert_same_predictions(ours, theirs, [image(), image()])


def caffe2_names(model, statistics):
    """Arrays of the bottom-up path under the names of Detectron (1): conv1_w, res_conv1_bn_s, res2_0_branch2a_w, ..."""
    arrays = {}
    prefix = "backbone.bottom_up."
    for name, value in as_arrays(model).items():
        if not name.startswith(prefix):
            continue
        *layers, last = name[len(prefix) :].split(".")
        norm = layers[-1] == "norm"
        layers = layers[:-1] if norm else layers
        if norm:
            suffix = {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"}[last]
        else:
            suffix = {"weight": "w", "bias": "b"}[last]
        if suffix in ("bn_rm", "bn_riv") and not statistics:
            continue
        if layers == ["stem", "conv1"]:
            arrays[f"{'res_' if norm else ''}conv1_{suffix}"] = value
            continue
        stage, block, layer = layers
        branch = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}[layer]
        arrays[f"{stage}_{block}_{branch}_{suffix}"] = value
    return arrays


@pytest.mark.parametrize("statistics", [False, True], ids=["affine", "with statistics"])
@pytest.mark.parametrize("blobs", [False, True], ids=["ImageNet", "blobs"])
def test_a_caffe2_backbone_lands_where_detectron2_puts_it(statistics, blobs, tmp_path, caplog):
    source = small_model(random=True)
    arrays = caffe2_names(source, statistics)
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res3_0_branch1_bn_b"} < arrays.keys()
    momenta = {f"{name}_momentum": np.full_like(value, 9) for name, value in arrays.items()}
    content = {**arrays, **momenta, "fc1000_w": np.ones((10, 512), "f4"), "fc1000_b": np.ones(10, "f4")}
    (tmp_path / "R-18.pkl").write_bytes(python2_pickle({"blobs": content, "cfg": "none"} if blobs else content))

    theirs, ours = small_model(), small_model()
    fresh = copies(ours)
    DetectionCheckpointer(theirs).load(str(tmp_path / "R-18.pkl"))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        RetinaCheckpointer(ours).load(str(tmp_path / "R-18.pkl"))
    assert all(r.levelno < logging.WARNING for r in caplog.records), "what a backbone lacks is no reason to warn"

    landed = 0
    expected, loaded = theirs.state_dict(), source.state_dict()
    for name, value in ours.state_dict().items():
        if name.startswith("backbone.bottom_up."):
            assert torch.equal(value, expected[name]), name
            if "running" not in name or statistics:
                assert torch.equal(value, loaded[name]), name
                landed += 1
        else:
            assert torch.equal(value, fresh[name]), name
    assert landed == len(arrays)

    table = caplog.text
    assert re.search(rf"\| backbone.bottom_up +\| +{landed} \| +\| +\|", table)
    assert re.search(r"\| head.cls_score +\| +\| +\| +2 \|", table)
    assert re.search(r"\| backbone.fpn_lateral +\| +\| +\| +6 \|", table)
    assert "Not of this model, and left out: fc1000.bias; fc1000.weight" in table
    assert len(table.splitlines()) < 25, "a line a module, not one a key"


def test_a_backbone_of_another_width_is_refused_with_the_shapes(tmp_path):
    arrays = caffe2_names(small_model(random=True), True)
    arrays["res2_0_branch2a_w"] = np.ones((32, 64, 3, 3), "f4")
    (tmp_path / "R-18.pkl").write_bytes(python2_pickle(arrays))
    model = small_model()
    before = copies(model)
    message = r"backbone.bottom_up.res2.0.conv1.weight: \(32, 64, 3, 3\) in the file, \(64, 64, 3, 3\) in the model"
    with pytest.raises(CheckpointError, match=message):
        RetinaCheckpointer(model).load(str(tmp_path / "R-18.pkl"))
    assert_same(model.state_dict(), before)


def test_a_backbone_alone_cannot_be_evaluated(tmp_path):
    (tmp_path / "R-18.pkl").write_bytes(python2_pickle(caffe2_names(small_model(random=True), True)))
    with pytest.raises(
        CheckpointError, match=r"tensors are missing in the file:\n(.*\n)*  head.cls_score.\{bias, weight\}"
    ):
        RetinaCheckpointer(small_model(), strict=True).load(str(tmp_path / "R-18.pkl"))


def test_a_model_within_data_parallel_is_loaded_without_its_prefix(tmp_path):
    source, model = small_model(random=True), small_model()
    torch.save({"model": {f"module.{name}": value for name, value in source.state_dict().items()}}, tmp_path / "m.pth")
    RetinaCheckpointer(model, strict=True).load(str(tmp_path / "m.pth"))
    assert_same(model.state_dict(), source.state_dict())
