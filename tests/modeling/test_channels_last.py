"""Weights, activations and gradients of backbone and head are in channels_last memory format."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retina_plugin import add_retina_config
from retina_plugin.modeling.head import per_anchor


def make_model(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.merge_from_file("configs/Base-RetinaNet.yaml")
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.CHANNELS_LAST", True, "MODEL.FPN.OUT_CHANNELS", 32]
        + ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.PIXEL_STD", [58.0, 57.0, 57.0]]
        + ["MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.NUM_CONVS", 1, *opts]
    )
    return build_model(cfg)


def make_input():
    instances = Instances((120, 90))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 70.0]]))
    instances.gt_classes = torch.tensor([1])
    return {"image": torch.randint(0, 256, (3, 120, 90), dtype=torch.uint8), "instances": instances}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


def assert_channels_last(model):
    """Check weights, inputs and outputs of all convolutions in training and inference, and gradients."""
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 4}
    assert len(weights) > 20 and all(map(is_channels_last, weights.values()))
    outputs, predictions = [], []
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [c.register_forward_hook(lambda conv, inputs, output: outputs.extend((*inputs, output))) for c in convs]
    hooks.append(model.head.register_forward_hook(lambda head, inputs, output: predictions.append(output)))
    with EventStorage():
        sum(model.train()([make_input(), make_input()]).values()).backward()
    model.eval()([make_input()])
    for hook in hooks:
        hook.remove()
    assert all(map(is_channels_last, outputs)) and len(predictions) == 2
    for logits, deltas, _ in predictions:
        assert all(per_anchor(x, 4).is_contiguous() for x in (*logits, *deltas))
    gradients = {name: p.grad for name, p in weights.items() if p.requires_grad}
    assert all(map(is_channels_last, gradients.values()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("opts", [(), ("MODEL.BACKBONE.FOLD_FROZEN_BN", True), ("MODEL.RETINANET.NORM", "BN")])
def test_everywhere_in_backbone_and_head(opts):
    assert_channels_last(make_model(*opts))


def test_off_by_default():
    weights = [p for p in make_model("MODEL.CHANNELS_LAST", False).parameters() if p.dim() == 4]
    assert not any(is_channels_last(w) for w in weights if w.shape[2] > 1)


def test_kept_when_a_checkpoint_is_loaded(tmp_path):
    plain, model = make_model("MODEL.CHANNELS_LAST", False), make_model()
    DetectionCheckpointer(plain, str(tmp_path)).save("plain")
    DetectionCheckpointer(model).load(str(tmp_path / "plain.pth"))
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert_channels_last(model)


def test_kept_in_a_copy():
    assert_channels_last(copy.deepcopy(make_model()))


def test_kept_when_the_dtype_of_the_weights_changes():
    assert_channels_last(make_model().double())


def test_under_distributed_data_parallel(tmp_path):
    plain, batch = make_model("MODEL.CHANNELS_LAST", False), [make_input()]
    model = make_model()
    model.load_state_dict(plain.state_dict())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        with EventStorage():
            sum(DistributedDataParallel(model.double(), broadcast_buffers=False)(batch).values()).backward()
            sum(plain.double()(batch).values()).backward()
    finally:
        dist.destroy_process_group()
    for (name, p), expected in zip(model.named_parameters(), plain.parameters()):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected.grad, rtol=1e-6, atol=1e-6 * expected.grad.abs().max())
            assert p.dim() < 4 or is_channels_last(p.grad), name
