"""Labels that do not follow the convention are refused, alike by the fused and the plain loss and by the modules."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from retina_plugin import losses

from .closed_forms import FAMILY, TYPICAL, call_module

pytestmark = pytest.mark.parametrize("name, settings", TYPICAL)
N, H, W, K = 2, 3, 4, 5


@pytest.fixture
def loss(name, settings):
    return partial(FAMILY[name].function, **settings)


@pytest.fixture
def logits():
    return torch.randn(N, H, W, K)


@pytest.fixture
def labels():
    return torch.randint(-1, K + 1, (N, H, W))


def test_every_integer_type_gives_the_same(loss, logits, labels):
    expected = loss(logits, labels)
    for dtype in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(loss(logits, labels.to(dtype)), expected)
    assert torch.equal(loss(logits, labels.clamp(min=0).byte()), loss(logits, labels.clamp(min=0)))


@pytest.mark.parametrize(
    "convert, got",
    [
        (lambda y: y.float(), r"float32 of shape \(2, 3, 4\)"),
        (lambda y: F.one_hot(y.clamp(0, K - 1), K).float(), r"float32 of shape \(2, 3, 4, 5\)"),
        (lambda y: y == 0, r"bool of shape \(2, 3, 4\)"),
        (lambda y: y.to(torch.complex64), "complex64"),
        (lambda y: y.clamp(min=0).to(torch.uint16), "uint16"),
        (lambda y: y.numpy(), "ndarray"),
        (lambda y: y.tolist(), "list"),
    ],
)
def test_labels_that_are_no_integers_are_refused(loss, logits, labels, convert, got):
    with pytest.raises(TypeError, match=rf"integers of shape \(2, 3, 4\).*0..4 a class, 5 background.*got {got}"):
        loss(logits, convert(labels))


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.transpose(1, 2).contiguous(),
        lambda y: y.flatten(),
        lambda y: y[..., None],
        lambda y: y[:1],
        lambda y: y[:, :, :3],
        lambda y: F.one_hot(y.clamp(0, K - 1), K),
        lambda y: y[0, 0, 0],
    ],
)
def test_labels_of_another_shape_are_refused(loss, logits, labels, convert):
    given = convert(labels)
    with pytest.raises(ValueError) as error:
        loss(logits, given)
    assert str(error.value).endswith(f"got shape {tuple(given.shape)}") and "shape (2, 3, 4) for logits" in str(
        error.value
    )


@pytest.mark.parametrize("label", [255, K + 1, -2, -100, 2**32, -(2**31)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_labels_out_of_range_are_refused_on_a_cpu(loss, logits, labels, label, reduction):
    labels[1, 2, 3] = label
    with pytest.raises(ValueError, match=f"0..4 a class, 5 background, -1 ignored, never one-hot, got {label}$"):
        loss(logits, labels, reduction=reduction)


def test_targets_of_a_binary_loss_are_refused(loss):
    """With K = 1 a label of 1 is background; 0/1 as float or bool can only mean the opposite."""
    logits, targets = torch.randn(20, 1), torch.randint(0, 2, (20,))
    for given in (targets.float(), targets.bool()):
        with pytest.raises(TypeError, match="0 the class, 1 background"):
            loss(logits, given)
    with pytest.raises(ValueError, match=r"shape \(\) for logits of shape \(20,\)"):
        loss(logits[:, 0], targets)


@pytest.mark.parametrize("logits", [torch.zeros(3, 2, dtype=torch.int64), torch.tensor(1.0), np.zeros((3, 2)), None])
def test_logits_that_are_none_are_refused(loss, logits):
    with pytest.raises(TypeError, match=r"logits must be a float tensor of shape \(..., K\), got"):
        loss(logits, torch.zeros(3, dtype=torch.int64))


def test_modules_check_types_and_shapes(name, settings, logits, labels):
    module = FAMILY[name].module(**settings)
    assert call_module(module, [logits], [labels]) > 0
    for wrong in (labels.float(), labels == 0):
        with pytest.raises(TypeError, match="labels must be integers of shape"):
            call_module(module, [logits], [wrong])
    targets = losses.Targets(F.one_hot(labels.clamp(0, K - 1), K).flatten(1, 2), torch.zeros(N, H * W, 4))
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        module([logits], targets, losses.LossContext(list), 1.0)
