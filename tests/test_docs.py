"""The examples of docs/extending.md run, and compute what they say."""

import re

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from retina_plugin.modeling import AnchorMatcher

from .engine.small import make_cfg, make_image


@pytest.fixture(scope="module")
def examples(request):
    text = (request.config.rootpath / "docs" / "extending.md").read_text()
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    return namespace


def make_model(examples, *opts):
    cfg = make_cfg()
    examples["add_config"](cfg)
    cfg.merge_from_list(opts)
    return build_model(cfg).train()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_with_a_key_of_its_own(examples, seed, smoothing):
    opts = ("MODEL.RETINANET.CLS_LOSS", "smoothed_cross_entropy", "MODEL.RETINANET.SMOOTHING", smoothing)
    model, batch = make_model(examples, *opts), [make_image(seed, i, 3) for i in range(2)]
    raw, targets = model.raw_predictions(batch), model.assign(batch)
    total, divisor = 0.0, 7.0
    for x, labels in zip(raw.logits, targets.labels_by_level(raw.logits)):
        for k in range(3):
            p = x[..., k].double().sigmoid()[labels >= 0]
            wanted = (labels[labels >= 0] == k) * (1 - smoothing)
            total -= (wanted * p.log() + (1 - wanted) * (1 - p).log()).sum()
    losses = model.compute_losses(batch, targets, divisor)
    assert losses["loss_cls"].item() == pytest.approx(total.item() / divisor, rel=1e-5)
    with EventStorage():
        sum(model(batch).values()).backward()
    assert model.head.cls_score.weight.grad.abs().sum() > 0


def test_the_assigner(examples, seed):
    model = make_model(examples, "MODEL.RETINANET.ASSIGNER", "ignore_tiny")
    model.assigner.min_side = 16.0
    batch = [make_image(seed, i, 6) for i in range(3)]
    targets = model.assign(batch)
    plain = AnchorMatcher(make_cfg())
    model.assigner = plain
    expected = model.assign(batch)
    positive = expected.is_positive(3)
    width, height = (expected.boxes[..., 2:] - expected.boxes[..., :2]).unbind(-1)
    tiny = positive & ((width < 16) | (height < 16))
    assert tiny.any() and (positive & ~tiny).any()
    assert torch.equal(targets.labels, torch.where(tiny, -1, expected.labels))
