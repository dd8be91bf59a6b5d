"""In a training step on a GPU the host never waits, but for what it logs: no operator asks for a value or a count."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from retina_plugin.losses import LossNormalizer
from retina_plugin.modeling import AnchorMatcher, BoxRegressionLoss, FocalRetinaNet

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "repeat_interleave", "_unique2")


def random_boxes(count):
    corner = torch.rand(count, 2) * 50
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 40], dim=1)


class Syncs(TorchDispatchMode):
    """The operators called that make the host wait for a GPU: here, on the CPU, they are the same."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith(("index", "index_put")) and any(
            x is not None and x.dtype == torch.bool for x in args[1] if isinstance(args[1], (list, tuple))
        )
        if name in WAITS or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_the_check_itself():
    mask = torch.tensor([True, False])
    for wait in (mask.nonzero, lambda: mask[mask], mask.any().item, lambda: mask.masked_fill(mask, 0)[0].item()):
        with Syncs() as syncs:
            wait()
        assert len(syncs.found) == 1


def test_matching_without_a_grid():
    """As on a GPU."""
    anchors, boxes = Boxes(random_boxes(2000)), Boxes(random_boxes(40))
    with Syncs() as syncs:
        _, labels = AnchorMatcher()(anchors, boxes)
    assert (labels == 1).any() and syncs.found == []


@pytest.mark.parametrize("mode", ["ema", "positives"])
def test_box_loss_and_normalizer(mode):
    anchors, boxes = random_boxes(200), torch.stack([random_boxes(200)] * 2)
    deltas, positive = torch.randn(2, 200, 4, requires_grad=True), torch.rand(2, 200) < 0.2
    loss, normalizer = BoxRegressionLoss(box2box_transform=Box2BoxTransform((1.0,) * 4)), LossNormalizer(mode)
    with Syncs() as syncs:
        (loss(deltas, anchors, boxes, positive) / normalizer(positive.sum())).backward()
    assert (deltas.grad != 0).any() and syncs.found == []


@pytest.mark.parametrize("due", [False, True])
def test_logging_the_positives_of_each_level_waits_no_more_often(due):
    """tolist() is one wait, which the dispatcher does not see."""
    model = FocalRetinaNet.__new__(FocalRetinaNet)
    torch.nn.Module.__init__(model)
    model.loss_normalizer = LossNormalizer("ema")
    model.log_period, model.head_in_features = 5, ["p3", "p4", "p5"]
    cells = [torch.Size(c) for c in ((4, 5, 3), (2, 3, 3), (1, 2, 3))]
    positive = torch.rand(2, sum(c.numel() for c in cells)) < 0.3
    with EventStorage(4 if due else 3) as storage, Syncs() as syncs:
        model._log_positives(positive, positive.sum(), cells)
    assert len(syncs.found) == (0 if due else 1)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    by_level = [x.sum().item() / 2 for x in positive.split([c.numel() for c in cells], dim=1)]
    assert latest.pop("num_pos_anchors") == positive.sum().item() / 2
    assert list(latest.values()) == (by_level if due else [])
