"""A training step does not synchronize host and GPU, except for logging: no operator needs a value or a count."""

import pytest
import torch
from detectron2.structures import Boxes
from torch.utils._python_dispatch import TorchDispatchMode

from retina_plugin.losses import LossNormalizer
from retina_plugin.modeling import AnchorMatcher, BoxRegressionLoss, DeltaXYWHCoder

from ..engine.small import make_cfg, make_image, make_model

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "repeat_interleave", "_unique2")


def random_boxes(count):
    corner = torch.rand(count, 2) * 50
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 40], dim=1)


class Syncs(TorchDispatchMode):
    """Records the operators that would synchronize on a GPU; the same operators run on the CPU."""

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
        _, labels = AnchorMatcher(num_classes=9).match(anchors, boxes)
    assert (labels == 1).any() and syncs.found == []


@pytest.mark.parametrize("mode", ["ema", "positives"])
def test_box_loss_and_normalizer(mode):
    anchors, boxes = random_boxes(200), torch.stack([random_boxes(200)] * 2)
    deltas, positive = torch.randn(2, 200, 4, requires_grad=True), torch.rand(2, 200) < 0.2
    loss, normalizer = BoxRegressionLoss(box_coder=DeltaXYWHCoder()), LossNormalizer(mode)
    with Syncs() as syncs:
        (loss(deltas, anchors, boxes, positive) / normalizer(positive.sum())).backward()
    assert (deltas.grad != 0).any() and syncs.found == []


def test_counting_the_positives_of_each_level(seed):
    """Sizes of images are numbers of the host, and padding them fetches values of tensors that no GPU ever has."""
    model = make_model(make_cfg(), seed)
    batch = [make_image(seed, i, 3) for i in range(2)]
    targets = model.assign(batch)
    with Syncs() as of_sizes:
        model._padded_size(batch)
    with Syncs() as syncs:
        counts = model.num_positives_by_level(batch, targets)
        model.loss_normalizer(counts.sum())
    assert syncs.found == of_sizes.found
    cells = [8 * 8, 4 * 4, 2 * 2]  # of 64 x 64 pixels at strides 8, 16 and 32, with 3 anchors each
    labels = targets.labels.split([3 * number for number in cells], dim=1)
    assert counts.tolist() == [int(((level >= 0) & (level < 3)).sum()) for level in labels] and counts.sum() > 0
