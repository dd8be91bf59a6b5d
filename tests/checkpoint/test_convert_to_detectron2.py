"""This plugin's weights for Detectron2's own RetinaNet, or why not."""

import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from benchmarks import models

from .conftest import assert_same_predictions
from .converted import run, run_error

SIZE = (150, 270)


@pytest.fixture
def trained(tmp_path):
    """trained(KEY, VALUE, ...): a folder as a training leaves it, and its detector."""

    def make(*overrides):
        cfg = models.plugin_config("cpu", (*models.SMALL, *overrides))
        model = models.build(cfg, models.weights(models.SMALL)).eval()
        DetectionCheckpointer(model, str(tmp_path)).save("model_final", iteration=7)
        (tmp_path / "config.yaml").write_text(cfg.dump())
        return tmp_path, model

    return make


def command(folder, target, *options):
    return ["convert", str(folder / "model_final.pth"), str(folder / "out"), "--to", target, *options]


def export(folder, target, *options):
    return run(*command(folder, target, *options))


def test_detectron2s_own_gives_the_same_predictions(trained):
    folder, ours = trained("MODEL.RETINANET.CLS_LOSS", "cross_entropy", "TEST.DETECTIONS_PER_IMAGE", 50)
    output = export(folder, "detectron2")
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "out.yaml"))  # which raises for a key that it does not know
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and cfg.TEST.DETECTIONS_PER_IMAGE == 50
    assert "MODEL.RETINANET.CLS_LOSS cross_entropy is not known to Detectron2, which would train otherwise" in output

    theirs = build_model(cfg).eval()
    file = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    assert set(file) == {"model", "__author__"}
    theirs.load_state_dict(file["model"], strict=True)
    batch = [{"image": torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)}]
    print(f"Detectron2: {len(ours.state_dict())} weights -> {len(file['model'])}")
    assert_same_predictions(ours, theirs, batch)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["MODEL.FPN.TOP_BLOCK_RELU", False], "MODEL.FPN.TOP_BLOCK_RELU is False"),
        (["MODEL.FPN.SIZE_DIVISIBILITY", 128], "SIZE_DIVISIBILITY is 128"),
        (["MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS", True], "CLIP_BOXES_BEFORE_NMS is True"),
        (["MODEL.ANCHOR_GENERATOR.NAME", "TorchvisionAnchorGenerator"], "NAME is TorchvisionAnchorGenerator"),
    ],
)
def test_what_detectron2_cannot_do_is_refused(trained, overrides, message):
    folder, _ = trained(*overrides)
    error = run_error(*command(folder, "detectron2"))
    assert re.search(f"Detectron2's own RetinaNet cannot compute the same: .*{message}", error)
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize("target", ["detectron2", "torchvision"])
@pytest.mark.parametrize("key", ["HEAD_NAME", "BOX_CODER"])
def test_parts_of_a_project_are_refused(trained, key, target):
    folder, _ = trained()
    config = (folder / "config.yaml").read_text()
    changed = re.sub(rf"\b{key}: \w+", f"{key}: Mine", config)
    assert changed != config
    (folder / "config.yaml").write_text(changed)
    assert f"MODEL.RETINANET.{key} is Mine" in run_error(*command(folder, target))
    assert not list(folder.glob("out*"))


def test_a_configuration_is_needed(trained):
    folder, _ = trained()
    (folder / "config.yaml").rename(folder / "mine.yaml")
    error = run_error(*command(folder, "detectron2"))
    assert re.search("neither .*model_final.yaml nor .*config.yaml: name it with", error)
    export(folder, "detectron2", "--config-file", str(folder / "mine.yaml"))
    assert (folder / "out.pth").is_file()
