"""With channels last, and with frozen norms folded into the convolutions, the numbers are Detectron2's still.

Both keys change the order of sums. In float32, that decides now and then on which side of 0 a ReLU lies, or which of
two detections is the better one: there, the gradients of a ResNet-50 of random weights are 1 % from those in float64,
Detectron2's own as well. So what has such steps is compared with convolutions in float64.
"""

import pytest
import torch
from detectron2.modeling import build_model

from .conftest import NARROW, make_config
from .test_training import ALL_TRAINABLE, assert_same_step, losses_and_gradients

CHANNELS_LAST = ("MODEL.CHANNELS_LAST", "True")
FOLDED = ("MODEL.BACKBONE.FOLD_FROZEN_BN", "True")
KEYS = (CHANNELS_LAST, FOLDED, CHANNELS_LAST + FOLDED)

pytestmark = pytest.mark.slow


def with_keys(keys, plain, *opts):
    """A detector with these keys that has loaded the state of another."""
    model = build_model(make_config("Base-RetinaNet.yaml", *keys, *opts)[0])
    assert model.load_state_dict(plain.state_dict()).missing_keys == []
    return model


def test_losses_and_all_gradients(make_pair, make_batch, assert_close):
    opts = (*NARROW, *ALL_TRAINABLE)
    plain, theirs = make_pair("Base-RetinaNet.yaml", *opts)
    batch = make_batch((6,))
    expected = losses_and_gradients(theirs.double(), batch)
    for keys in KEYS:
        assert_same_step(losses_and_gradients(with_keys(keys, plain, *opts).double(), batch), expected, assert_close)


def test_losses_and_gradients_in_float32(make_pair, make_batch, assert_close):
    plain, theirs = make_pair()
    batch = make_batch((6,))
    their_losses, their_gradients, _ = losses_and_gradients(theirs, batch)
    for keys in KEYS:
        losses, gradients, _ = losses_and_gradients(with_keys(keys, plain), batch)
        for name, loss in their_losses.items():
            assert_close(f"{name}, sums in another order", losses[name], loss, 5e-5)
        name = "head.cls_score.weight"
        assert_close("class layer's gradient, sums in another order", gradients[name], their_gradients[name], 1e-3)
        for name, gradient in their_gradients.items():
            assert (gradients[name] - gradient).norm() < 0.2 * gradient.norm(), name


@torch.no_grad()
def test_same_detections(make_pair, make_batch, assert_close):
    plain, theirs = make_pair("Base-RetinaNet.yaml", *NARROW)
    batch = make_batch((1, 1))
    expected = [output["instances"] for output in in_float64_before_postprocessing(theirs)(batch)]
    assert sum(map(len, expected)) > 0
    for keys in KEYS:
        model = in_float64_before_postprocessing(with_keys(keys, plain, *NARROW))
        for output, instances in zip(model(batch), expected, strict=True):
            detections = output["instances"]
            assert torch.equal(detections.pred_classes, instances.pred_classes)
            assert_close("scores of detections", detections.scores, instances.scores, 1e-6)
            assert_close("boxes of detections", detections.pred_boxes.tensor, instances.pred_boxes.tensor, 1e-6)


def in_float64_before_postprocessing(model):
    # Detectron2's own NMS takes no float64.
    model.double().eval()
    model.anchor_generator.float()
    model.head.register_forward_hook(lambda head, features, outputs: [[x.float() for x in xs] for xs in outputs])
    return model
