"""A frozen norm folded into its convolution computes the numbers of both."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from retina_plugin import ConfigError, add_retina_config
from retina_plugin.modeling.backbones.frozen_bn import fold_frozen_bn

SHAPES = {
    "3x3": {"kernel_size": 3, "padding": 1, "bias": False},
    "1x1, stride 2": {"kernel_size": 1, "stride": 2, "bias": False},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
    "dilated, not square": {"kernel_size": (3, 1), "padding": (2, 0), "dilation": 2, "bias": False},
    "bias": {"kernel_size": 3},
}


def make_pair(dtype=torch.float64, activation=None, **shape):
    """Detectron2's convolution with a norm of random statistics, and a folded copy."""
    conv = Conv2d(8, 12, norm=FrozenBatchNorm2d(12), activation=activation, **shape).to(dtype)
    randomize(conv.norm)
    folded = copy.deepcopy(conv)
    assert fold_frozen_bn(nn.Sequential(folded)) == 1
    return conv, folded


def randomize(norm):
    for buffer in (norm.weight, norm.bias, norm.running_mean):
        buffer.normal_()
    norm.running_var.uniform_(0.1, 4)


def outputs_and_gradients(conv, x):
    x = x.detach().requires_grad_()
    output = conv(x)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return output, *torch.autograd.grad((output * weights).sum(), [x, *conv.parameters()])


def assert_same(ours, theirs, x, **tolerance):
    for mine, expected in zip(outputs_and_gradients(ours, x), outputs_and_gradients(theirs, x), strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, **tolerance)


@pytest.mark.parametrize("activation", [None, torch.relu_])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_equal_convolution_and_norm(shape, activation):
    conv, folded = make_pair(activation=activation, **SHAPES[shape])
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    assert_same(folded, conv, x)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), conv(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_in_both_memory_formats(shape, memory_format):
    conv, folded = make_pair(torch.float32, **SHAPES[shape])
    x = torch.randn(2, 8, 7, 9)
    output = folded.to(memory_format=memory_format)(x.to(memory_format=memory_format))
    assert output.is_contiguous(memory_format=memory_format)
    assert_same(folded, conv, x, rtol=1e-4, atol=1e-4)


def test_gradients_of_trainable_parameters_only():
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    conv, folded = make_pair(**SHAPES["3x3"])
    expected = outputs_and_gradients(conv, x)
    folded(x).sum().backward()  # the first layer that trains: images have no gradient
    assert folded.weight.grad is not None and x.grad is None
    folded.weight.requires_grad_(False)
    x.requires_grad_()
    output = folded(x)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weights).sum().backward()
    torch.testing.assert_close(x.grad, expected[1])
    assert not folded(x.detach()).requires_grad


def test_parameters_and_buffers_are_the_same_objects_with_the_same_names():
    conv, _ = make_pair(**SHAPES["bias"])
    before = {**dict(conv.named_parameters()), **dict(conv.named_buffers())}
    fold_frozen_bn(nn.Sequential(conv))
    after = {**dict(conv.named_parameters()), **dict(conv.named_buffers())}
    assert list(before) == list(after) and all(after[name] is before[name] for name in before)
    assert set(conv.state_dict()) == set(before)


def test_changed_weights_take_effect():
    conv, folded = make_pair(torch.float32, **SHAPES["3x3"])
    x = torch.randn(2, 8, 7, 9)
    other, _ = make_pair(torch.float32, **SHAPES["3x3"])

    def assert_equal_outputs(x):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(folded(x), conv(x), rtol=1e-4, atol=1e-4)

    assert_equal_outputs(x)
    for module in (conv, folded):
        module.load_state_dict(other.state_dict())
    assert_equal_outputs(x)
    for module in (conv, folded):
        module(x).pow(2).sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.01).step()
    assert_equal_outputs(x)
    for module in (conv, folded):
        module.weight.data = module.weight.data.roll(1, dims=0)
        module.norm.running_mean.data.add_(1)
    assert_equal_outputs(x)
    copied, unchanged = copy.deepcopy(folded), folded(x)
    with torch.no_grad():
        copied.weight.zero_()
        copied.norm.bias.zero_()
    assert torch.equal(folded(x), unchanged) and not torch.equal(copied(x), unchanged)
    for module in (conv, folded):
        module.double()
    assert_equal_outputs(x.double())


def test_training_stores_no_scaled_weight():
    _, folded = make_pair(torch.float32, **SHAPES["3x3"])
    x = torch.randn(1, 8, 40, 40, requires_grad=True)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        folded(x)
    kept = {tensor.data_ptr(): tensor.numel() for tensor in kept}
    assert {x.data_ptr(), folded.weight.data_ptr()} <= set(kept)
    others = [numel for pointer, numel in kept.items() if pointer not in (x.data_ptr(), folded.weight.data_ptr())]
    assert sum(others) <= 12  # the scale of every channel


def test_a_weight_changed_before_backward_is_an_error():
    _, folded = make_pair(**SHAPES["3x3"])
    output = folded(torch.randn(2, 8, 7, 9, dtype=torch.float64))
    with torch.no_grad():
        folded.weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("grad", [True, False])
def test_computes_in_half_precision_under_autocast(grad):
    conv, folded = make_pair(torch.float32, **SHAPES["bias"])
    x = torch.randn(2, 8, 7, 9)
    expected = outputs_and_gradients(conv, x)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        output = folded(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected[0], rtol=0.05, atol=0.1)
    if grad:
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = folded(x).float()
        weights = torch.linspace(-1, 2, output.numel()).view(output.shape)
        (output * weights).sum().backward()
        for gradient, wanted in zip((x.grad, folded.weight.grad, folded.bias.grad), expected[1:]):
            assert gradient.dtype == torch.float32
            assert (gradient - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_traced_model_can_be_saved(tmp_path):
    conv, folded = make_pair(torch.float32, **SHAPES["3x3"])
    x = torch.randn(2, 8, 7, 9)
    with torch.no_grad():
        torch.jit.trace(folded, x).save(str(tmp_path / "folded.pt"))
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "folded.pt"))(x), conv(x), rtol=1e-4, atol=1e-4)


def test_other_norms_and_other_convolutions_are_not_folded():
    class Mine(Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    class MyNorm(FrozenBatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    others = nn.Sequential(
        Conv2d(3, 4, 1),
        Conv2d(4, 4, 1, norm=nn.BatchNorm2d(4)),
        Conv2d(4, 4, 1, norm=MyNorm(4)),
        Mine(4, 4, 1, norm=FrozenBatchNorm2d(4)),
        nn.Conv2d(4, 4, 1),
        FrozenBatchNorm2d(4),
    )
    kinds = [type(m) for m in others.modules()]
    assert fold_frozen_bn(others) == 0
    assert [type(m) for m in others.modules()] == kinds


def make_cfg(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CLASSES", 4, *opts])
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_p3p7_resnet_fpn_backbone"
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
    return cfg


def test_all_norms_of_a_backbone_are_folded():
    """FPN calls its convolutions through plain lists."""
    backbone = build_backbone(make_cfg("MODEL.FPN.NORM", "FrozenBN"), ShapeSpec(channels=3)).double()
    norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53 + 6
    for norm in norms:
        norm.bias.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = backbone(x)
    assert fold_frozen_bn(backbone) == 53 + 6
    calls = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, inputs: calls.append(norm))
    for name, feature in backbone(x).items():
        torch.testing.assert_close(feature, expected[name])
    assert calls == []


def test_the_key_folds_and_is_refused_without_frozen_norms():
    def folded(model):
        return sum(type(m).__name__ == "FrozenBNConv2d" for m in model.modules())

    plain, model = build_model(make_cfg()), build_model(make_cfg("MODEL.BACKBONE.FOLD_FROZEN_BN", True))
    assert folded(plain) == 0 and folded(model) == 53
    assert list(plain.state_dict()) == list(model.state_dict())
    trained_norms = ("MODEL.BACKBONE.FOLD_FROZEN_BN", True, "MODEL.RESNETS.NORM", "BN")
    assert folded(build_model(make_cfg(*trained_norms))) == 11  # MODEL.BACKBONE.FREEZE_AT 2: stem and res2
    with pytest.raises(ConfigError, match="FOLD_FROZEN_BN is True, but the backbone has no convolution"):
        build_model(make_cfg(*trained_norms, "MODEL.BACKBONE.FREEZE_AT", 0))
