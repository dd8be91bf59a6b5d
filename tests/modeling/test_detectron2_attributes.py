"""Settings of Detectron2's RetinaNet that are set after a model is built: the same effect as on Detectron2's own."""

import copy

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformRotated
from detectron2.modeling.matcher import Matcher
from detectron2.utils.events import EventStorage

from ..engine.small import make_cfg, make_image
from ..losses.test_registry import build as build_loss

NAMES = ["test_score_thresh", "test_topk_candidates", "test_nms_thresh", "max_detections_per_image"]
NAMES += ["focal_loss_alpha", "focal_loss_gamma", "smooth_l1_beta", "box_reg_loss_type", "num_classes"]


@pytest.fixture
def models(seed):
    """FocalRetinaNet and Detectron2's RetinaNet with equal weights and many detections."""
    pair = []
    for name in ("FocalRetinaNet", "RetinaNet"):
        cfg = make_cfg()
        cfg.MODEL.META_ARCHITECTURE = name
        pair.append(build_model(cfg).double())
    ours, theirs = pair
    with torch.no_grad():
        for parameter in (*ours.head.cls_score.parameters(), *ours.head.bbox_pred.parameters()):
            parameter.normal_(std=0.3)
    state = ours.state_dict()
    state.pop("loss_normalizer.ema")
    theirs.load_state_dict(state)
    return pair


def detect(model, seed):
    """Scores, classes and boxes by score, and equal scores, which Detectron2 leaves in any order, by class and box."""
    with torch.no_grad():
        found = copy.deepcopy(model).float().eval()([{"image": make_image(seed, 0, 3)["image"]}])[0]["instances"]
    found = found[torch.from_numpy(np.lexsort((*found.pred_boxes.tensor.T, found.pred_classes, -found.scores)))]
    return found.scores, found.pred_classes, found.pred_boxes.tensor


def compute_losses(model, seed):
    batch = [make_image(seed, i, 3) for i in range(2)]
    for image in batch:
        image["image"] = image["image"].double()
    with EventStorage():
        losses = copy.deepcopy(model).train()(batch)
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("name", NAMES)
def test_starts_with_the_value_of_the_configuration(models, name):
    ours, theirs = models
    assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize(
    "name, value",
    [
        ("test_score_thresh", None),
        ("test_topk_candidates", 7),
        ("test_nms_thresh", 0.05),
        ("max_detections_per_image", 3),
        ("box2box_transform", Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))),
        ("box2box_transform", Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0), scale_clamp=-0.5)),
    ],
)
def test_detections_follow(models, seed, name, value):
    before = detect(models[0], seed)
    value = before[0].median().item() - 1e-5 if value is None else value
    for model in models:
        setattr(model, name, value)
        assert getattr(model, name) == value
    ours, theirs = (detect(model, seed) for model in models)
    assert len(ours[0]) == len(theirs[0]) > 0
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x.double(), y.double(), rtol=1e-5, atol=1e-4)
    assert len(before[0]) != len(ours[0]) or not torch.equal(before[2], ours[2])


@pytest.mark.parametrize(
    "name, value, changed",
    [
        ("focal_loss_alpha", 0.75, "loss_cls"),
        ("focal_loss_alpha", -1, "loss_cls"),
        ("focal_loss_gamma", 0.5, "loss_cls"),
        ("smooth_l1_beta", 2.0, "loss_box_reg"),
        ("box_reg_loss_type", "giou", "loss_box_reg"),
        ("box2box_transform", Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), "loss_box_reg"),
        ("anchor_matcher", Matcher([0.2, 0.3], [0, -1, 1], allow_low_quality_matches=True), "loss_cls"),
        ("anchor_matcher", Matcher([0.6], [0, 1], allow_low_quality_matches=False), "loss_cls"),
    ],
)
def test_losses_follow(models, seed, name, value, changed):
    before = compute_losses(models[0], seed)
    for model in models:
        setattr(model, name, value)
    ours, theirs = (compute_losses(model, seed) for model in models)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[changed] != pytest.approx(before[changed], rel=1e-3)


def test_the_matcher_is_detectron2s(models, seed):
    ours, theirs = models
    assert isinstance(ours.anchor_matcher, Matcher)
    quality = torch.rand(5, 200)
    for matcher in ((m.anchor_matcher for m in models), (copy.copy(m.anchor_matcher) for m in models)):
        results = [m(quality) for m in matcher]
        assert all(torch.equal(x, y) for x, y in zip(*results))
    for model in models:
        model.anchor_matcher.thresholds = [-float("inf"), 0.2, 0.3, float("inf")]
        model.anchor_matcher.allow_low_quality_matches = False
        assert model.anchor_matcher.thresholds == [-float("inf"), 0.2, 0.3, float("inf")]
    assert ours.assigner.thresholds == [0.2, 0.3] and not ours.assigner.allow_low_quality_matches
    assert compute_losses(ours, seed) == pytest.approx(compute_losses(theirs, seed), rel=1e-5)


def test_transforms_can_be_changed_in_place(models, seed):
    for model in models:
        model.box2box_transform.weights = (10.0, 10.0, 5.0, 5.0)
    assert compute_losses(models[0], seed) == pytest.approx(compute_losses(models[1], seed), rel=1e-5)


def test_another_number_of_classes_with_a_new_layer(models, seed):
    layer = models[1].head.cls_score
    layer = torch.nn.Conv2d(layer.in_channels, 3 * 5, kernel_size=3, padding=1).double()
    for model in models:
        model.num_classes, model.head.cls_score = 5, copy.deepcopy(layer)
    assert compute_losses(models[0], seed) == pytest.approx(compute_losses(models[1], seed), rel=1e-5)
    assert models[0].assigner.num_classes == 5


def test_one_alpha_a_class_and_back(models, seed):
    ours, _ = models
    expected = compute_losses(ours, seed)
    ours.focal_loss_alpha = [0.25] * 3
    assert ours.focal_loss_alpha.tolist() == [0.25] * 3 and "classification_loss.alpha" not in ours.state_dict()
    assert compute_losses(ours, seed) == pytest.approx(expected, rel=1e-6)
    ours.focal_loss_alpha = None
    assert ours.focal_loss_alpha == -1
    ours.focal_loss_alpha = 0.25
    assert compute_losses(ours, seed) == expected


@pytest.mark.parametrize("loss", ["cross_entropy", "focal_star", "hinge", "ohem"])
def test_alpha_is_that_of_every_loss_and_gamma_of_the_focal_loss(models, loss):
    ours, _ = models
    ours.classification_loss = build_loss(loss)
    ours.focal_loss_alpha = 0.75
    assert getattr(ours.classification_loss, "cross_entropy", ours.classification_loss).alpha == 0.75
    message = (
        f"FocalRetinaNet has no focal_loss_gamma: .* classification_loss, {type(ours.classification_loss).__name__}"
    )
    with pytest.raises(AttributeError, match=message):
        ours.focal_loss_gamma = 1.0
    with pytest.raises(AttributeError, match=message):
        ours.focal_loss_gamma  # noqa: B018
    assert not hasattr(ours, "focal_loss_gamma") and getattr(ours, "focal_loss_gamma", None) is None


@pytest.mark.parametrize(
    "name, part",
    [
        ("test_nms_thresh", "postprocessor"),
        ("box2box_transform", "box_coder"),
        ("anchor_matcher", "assigner"),
        ("smooth_l1_beta", "box_loss"),
    ],
)
def test_a_part_without_the_setting_is_named(models, name, part):
    class Own(torch.nn.Module):
        pass

    setattr(models[0], part, Own())
    for attempt in (lambda: setattr(models[0], name, 0.3), lambda: getattr(models[0], name)):
        with pytest.raises(AttributeError, match=f"has no {name}: .* its {part}, Own, does not have"):
            attempt()


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("focal_loss_alpha", 1.5, ValueError),
        ("focal_loss_gamma", -1.0, ValueError),
        ("smooth_l1_beta", -1.0, ValueError),
        ("box_reg_loss_type", "l2", ValueError),
        ("anchor_matcher", Matcher([0.4], [1, 1]), ValueError),
        ("anchor_matcher", None, TypeError),
        ("box2box_transform", Box2BoxTransformRotated(weights=(1.0, 1.0, 1.0, 1.0, 1.0)), TypeError),
    ],
)
def test_values_are_checked(models, seed, name, value, error):
    expected = compute_losses(models[0], seed)
    with pytest.raises(error):
        setattr(models[0], name, value)
    assert compute_losses(models[0], seed) == expected


def test_an_unknown_attribute_is_still_unknown(models):
    with pytest.raises(AttributeError, match="'FocalRetinaNet' object has no attribute 'test_score_threshold'"):
        models[0].test_score_threshold  # noqa: B018
