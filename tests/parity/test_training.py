"""Labels, losses and gradients are those of Detectron2's own RetinaNet."""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage

from .conftest import NARROW

BATCHES = {"boxes": (7, 1), "one image empty": (0, 5), "all images empty": (0, 0)}
ALL_TRAINABLE = ("MODEL.BACKBONE.FREEZE_AT", "0")
VARIANTS = {
    "smooth L1": ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "0.1"),
    "giou": ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"),
    "diou": ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "diou"),
    "ciou": ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "ciou"),
    "alpha off, gamma 0.7": ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1.0", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "0.7"),
    "BN in the head": ("MODEL.RETINANET.NORM", "BN"),
    "box weights": ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(10.0, 10.0, 5.0, 5.0)"),
}


def losses_and_gradients(model, batch):
    model.zero_grad()
    with EventStorage() as storage:
        losses = model(copy.deepcopy(batch))
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {k: v.detach() for k, v in losses.items()}, gradients, storage.latest()


def assert_same_step(ours, theirs, assert_close, without_gradient=()):
    """Compare what :func:`losses_and_gradients` returned of two detectors."""
    our_losses, our_gradients, our_scalars = ours
    their_losses, their_gradients, their_scalars = theirs
    assert set(our_losses) == set(their_losses)
    for name, loss in their_losses.items():
        assert_close(name, our_losses[name], loss, 1e-5)
    assert our_scalars["num_pos_anchors"] == their_scalars["num_pos_anchors"]
    assert set(our_gradients) == set(their_gradients)
    for name in set(their_gradients) - set(without_gradient):
        assert_close("gradient of any parameter", our_gradients[name], their_gradients[name], 1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_losses_and_all_gradients(batch, make_pair, make_batch, assert_close):
    ours, theirs = make_pair("Base-RetinaNet.yaml", *ALL_TRAINABLE)
    inputs = make_batch(BATCHES[batch])
    assert_same_step(losses_and_gradients(ours, inputs), losses_and_gradients(theirs, inputs), assert_close)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_all_gradients_of_variants(variant, make_pair, make_batch, assert_close):
    ours, theirs = make_pair("Base-RetinaNet.yaml", *NARROW, *VARIANTS[variant])
    # What BN subtracts again has a gradient of 0 and some rounding.
    before_bn = [
        f"head.{subnet}.{3 * i}.bias"
        for subnet in ("cls_subnet", "bbox_subnet")
        for i in range(4)
        if variant == "BN in the head"
    ]
    batch = make_batch((4, 2))
    assert_same_step(losses_and_gradients(ours, batch), losses_and_gradients(theirs, batch), assert_close, before_bn)


@pytest.mark.slow
def test_losses_and_all_gradients_of_r101(make_pair, make_batch, assert_close):
    ours, theirs = make_pair("retinanet_R101.yaml", *ALL_TRAINABLE)
    batch = make_batch((6,))
    assert_same_step(losses_and_gradients(ours, batch), losses_and_gradients(theirs, batch), assert_close)


@pytest.mark.parametrize("counts", [(1, 40, 0, 3)])
def test_labels_exactly(counts, make_pair, make_batch):
    ours, theirs = make_pair("Base-RetinaNet.yaml", *NARROW)
    batch = make_batch(counts)
    features = [torch.zeros(1, 1, 256 // s, 256 // s) for s in (8, 16, 32, 64, 128)]
    anchors = ours.anchor_generator(features)
    instances = [x["instances"] for x in batch]
    targets = ours.assigner(anchors, instances, num_cell_anchors=ours.anchor_generator.num_cell_anchors)
    labels, boxes = targets.labels, targets.boxes
    their_labels, their_boxes = theirs.label_anchors(theirs.anchor_generator(features), instances)
    assert torch.equal(labels, torch.stack(their_labels))
    positive = (labels >= 0) & (labels < 80)
    assert positive.any()
    assert torch.equal(boxes[positive], torch.stack(their_boxes)[positive])


def test_ten_training_steps(make_pair, make_batch, assert_close):
    """With a frozen bottom-up path: from random weights, its ten updates amplify the last bit a thousandfold.

    And without the kink of L1, whose gradient is a sign: where the last bit of a delta decides it, the runs part.
    """
    smooth = ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "0.1")
    opts = (*NARROW, "MODEL.BACKBONE.FREEZE_AT", "5", *smooth)
    ours, theirs = make_pair("Base-RetinaNet.yaml", *opts, lively=False)
    batches = [make_batch((3, 0)) for _ in range(10)]
    curves, gradients, start = [], [], theirs.head.cls_score.weight.detach().clone()
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=5e-2, momentum=0.9, weight_decay=1e-4)
        curve = []
        with EventStorage():
            for batch in batches:
                losses = model(copy.deepcopy(batch))
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                curve.append([loss.item() for loss in losses.values()])
        curves.append(torch.tensor(curve).T)
        # The sum of all gradients so far; the weights themselves move by too few units in the last place to compare.
        gradients.append(optimizer.state[model.head.cls_score.weight]["momentum_buffer"])
    for quantity, our_curve, their_curve in zip(("loss_cls", "loss_box_reg"), *curves):
        assert_close(f"{quantity} over ten steps", our_curve, their_curve, 1e-4)
    assert_close("normalizer after ten steps", ours.loss_normalizer.ema, theirs.loss_normalizer, 1e-6)
    assert (theirs.head.cls_score.weight - start).norm() > 1e-4 * start.norm(), "the steps train"
    assert_close("momentum of the class layer after ten steps", *gradients, 1e-3)
