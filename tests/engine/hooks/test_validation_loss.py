"""The validation loss: what it is, and what it leaves as it was."""

import json
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss

from retina_plugin import ConfigError
from retina_plugin.core.errors import FileError
from retina_plugin.engine.hooks.validation_loss import ValidationLoss

from .conftest import small_cfg


def make_model(cfg):
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that are not those of the images
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.1)
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.1)
    model.head.cls_subnet.append(torch.nn.Dropout(0.5))
    return model.train()


@torch.no_grad()
def brute_force(cfg, model, boxes_of):
    """Sums over all images and anchors, from the network in inference, and the total of positives."""
    model.eval()
    sums, total = np.zeros(2), 0
    for batch in build_detection_test_loader(cfg, "pets"):
        image, (kept, classes) = batch[0], boxes_of[batch[0]["image_id"]]
        features = model.backbone(model.preprocess_image(batch).tensor)
        features = [features[name] for name in model.head_in_features]
        logits, deltas, _ = model.head(features)
        logits = torch.cat([x.unflatten(1, (-1, 3)).permute(0, 3, 4, 1, 2).reshape(-1, 3) for x in logits])
        deltas = torch.cat([x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4) for x in deltas])
        anchors = Boxes.cat(model.anchor_generator(features))
        height, width = image["image"].shape[1:]
        # A last bit decides which anchors overlap a box equally much, and so are positive.
        scale = torch.tensor([width / image["width"], height / image["height"]] * 2, dtype=torch.float64)
        boxes = Boxes((torch.tensor(kept, dtype=torch.float64).reshape(-1, 4) * scale).float())
        target, ignored = torch.zeros_like(logits), torch.zeros(len(anchors), dtype=torch.bool)
        if len(boxes):
            iou = pairwise_iou(boxes, anchors)
            best, index = iou.max(dim=0)
            positive = (best >= 0.5) | (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
            ignored = (best >= 0.4) & ~positive
            target[positive, torch.tensor(classes)[index[positive]]] = 1
            expected = Box2BoxTransform(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS).get_deltas(
                anchors.tensor[positive], boxes.tensor[index[positive]]
            )
            sums[1] += (deltas[positive] - expected).abs().sum(dtype=torch.float64).item()
            total += positive.sum().item()
        losses = sigmoid_focal_loss(logits[~ignored].double(), target[~ignored].double(), alpha=0.25, gamma=2.0)
        sums[0] += losses.sum().item()
    model.train()
    return {"loss_cls": sums[0] / total, "loss_box_reg": sums[1] / total, "total_loss": sums.sum() / total}


def test_it_is_the_sum_over_all_images_divided_by_all_positive_anchors(pets, config):
    cfg = small_cfg(config, pets / "output", "TEST.VAL_LOSS_PERIOD", 1)
    model, coco = make_model(cfg), json.loads((pets / "annotations" / "instances_pets.json").read_text())
    boxes_of = {image["id"]: ([], []) for image in coco["images"]}
    for annotation in coco["annotations"]:
        if not annotation["iscrowd"]:
            x, y, w, h = map(float, annotation["bbox"])
            boxes_of[annotation["image_id"]][0].append([x, y, x + w, y + h])
            boxes_of[annotation["image_id"]][1].append({3: 0, 7: 1, 9: 2}[annotation["category_id"]])
    assert sorted(len(boxes) for boxes, _ in boxes_of.values()) == [0, 1, 2, 2, 2]
    losses = ValidationLoss(cfg, model)()["validation"]
    assert losses == pytest.approx(brute_force(cfg, model, boxes_of), rel=1e-4)


def state_of(model, storage):
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {
        "tensors": {name: value.clone() for name, value in tensors.items()},
        "order": list(model.state_dict()),
        "gradients": {name: None if g is None else g.clone() for name, g in gradients.items()},
        "modes": [module.training for module in model.modules()],
        "parts": [id(module) for module in model.modules()],
        "random": [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), random.getstate()],
        "events": [dict(storage.latest()), list(storage._vis_data), model.vis_period],
    }


def assert_equal(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("normalizer", ["ema", "positives_global"])
def test_the_model_does_not_notice(pets, config, normalizer):
    keys = ("TEST.VAL_LOSS_PERIOD", 1, "VIS_PERIOD", 1, "MODEL.RETINANET.LOSS_NORMALIZER", normalizer)
    cfg = small_cfg(config, pets / "output", *keys)
    model = make_model(cfg)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    model.backbone.fpn_output3.eval()  # a part whose mode is not that of the rest
    validate = ValidationLoss(cfg, model)
    with EventStorage() as storage:
        storage.put_scalar("num_pos_anchors", 7)
        before = state_of(model, storage)
        losses = validate()
        assert_equal(state_of(model, storage), before)
        assert validate() == losses, "nor does anything of it depend on random numbers, such as dropout's"


def test_a_failure_leaves_the_model_as_it_was(pets, config):
    cfg = small_cfg(config, pets / "output", "TEST.VAL_LOSS_PERIOD", 1)
    model = make_model(cfg)
    validate = ValidationLoss(cfg, model)
    (pets / "pets" / f"{5:012d}.jpg").unlink()
    with EventStorage() as storage:
        before = state_of(model, storage)
        with pytest.raises(FileError):
            validate()
        assert_equal(state_of(model, storage), before)


def test_several_sets_have_their_names_in_the_keys(pets, config):
    register_coco_instances("pets_again", {}, str(pets / "annotations" / "instances_pets.json"), str(pets / "pets"))
    try:
        cfg = small_cfg(config, pets / "output", "TEST.VAL_LOSS_PERIOD", 1, "DATASETS.TEST", ("pets", "pets_again"))
        results = ValidationLoss(cfg, make_model(cfg))()["validation"]
    finally:
        DatasetCatalog.remove("pets_again")
        MetadataCatalog.remove("pets_again")
    assert results["pets"] == results["pets_again"] and set(results["pets"]) == {
        "loss_cls",
        "loss_box_reg",
        "total_loss",
    }


def test_a_set_without_boxes_is_refused_before_training(pets, config):
    path = pets / "annotations" / "instances_pets.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    cfg = small_cfg(config, pets / "output", "TEST.VAL_LOSS_PERIOD", 5)
    with pytest.raises(ConfigError, match="VAL_LOSS_PERIOD is 5, but data set 'pets' of DATASETS.TEST has no boxes"):
        ValidationLoss(cfg, make_model(cfg))
