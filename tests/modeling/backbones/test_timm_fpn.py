"""Backbones of timm: their feature maps are timm's own, and what is frozen keeps its activation."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

from retina_plugin import ConfigError, get_cfg, merge_config
from retina_plugin.model_zoo import get_config_file
from retina_plugin.modeling.backbones.timm_fpn import TimmBackbone, pixel_format

timm = pytest.importorskip("timm", reason="the package timm is not installed: pip install timm")

# A model of each kind, and its channels at strides 8, 16 and 32.
MODELS = {
    "tf_efficientnet_lite0": (40, 112, 320),  # norms with activation
    "mobilenetv4_conv_small": (64, 96, 960),
    "regnety_002": (56, 152, 368),
    "resnet18": (128, 256, 512),
    "convnext_atto": (80, 160, 320),  # layer norms, no feature map of stride 2
    "swin_tiny_patch4_window7_224": (192, 384, 768),  # channels last, made for one size of images
}


def randomize(model):
    """Statistics of norms that a forgotten conversion would show."""
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return model


def copy_state(source, target):
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def features_of_timm(name):
    size = {"strict_img_size": False} if "swin" in name else {}
    return timm.create_model(name, features_only=True, **size)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_feature_maps_are_timms_own(name, norm):
    theirs = randomize(features_of_timm(name)).eval()
    ours = TimmBackbone(name, norm=norm)
    copy_state(theirs, ours.body)
    theirs, ours = theirs.double(), ours.double()
    ours.train(norm == "FrozenBN")
    for module in ours.modules():  # stochastic depth differs between two passes in training
        if "Drop" in type(module).__name__:
            module.eval()
    images = torch.randn(2, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images)[-3:]
        made = ours(images)
    assert list(made) == ["res3", "res4", "res5"]
    for (key, feature), want in zip(made.items(), expected, strict=True):
        want = want.permute(0, 3, 1, 2) if "swin" in name else want
        shape = ours.output_shape()[key]
        assert feature.shape == (2, shape.channels, 96 // shape.stride, 160 // shape.stride)
        torch.testing.assert_close(feature, want, rtol=1e-9, atol=1e-9)
    assert [shape.channels for shape in ours.output_shape().values()] == list(MODELS[name])


@pytest.mark.parametrize(
    "freeze_at, stages",
    [
        (0, []),
        (1, ["conv_stem", "bn1", "blocks.0"]),
        (2, ["conv_stem", "bn1", "blocks.0", "blocks.1"]),
        (3, ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_freeze_at_freezes_from_the_stem_on(freeze_at, stages):
    backbone = TimmBackbone("tf_efficientnet_lite0", freeze_at=freeze_at, norm="BN")
    frozen = {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}
    frozen |= {  # a frozen norm has no parameters
        f"{name}.weight" for name, module in backbone.body.named_modules() if type(module).__name__.startswith("Frozen")
    }

    def in_stages(key):
        return any(key.startswith(f"{stage}.") for stage in stages)

    everything = {key for key in backbone.body.state_dict() if key.endswith(("weight", "bias"))}
    assert {key for key in everything if key.endswith("weight") and in_stages(key)} == frozen
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in backbone.parameters() if p.requires_grad), lr=0.1)
    sum(feature.square().mean() for feature in backbone.train()(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {
        key.removeprefix("body.") for key, value in backbone.state_dict().items() if not value.equal(before[key])
    }
    assert changed and not any(in_stages(key) for key in changed)


@pytest.mark.parametrize("model, stem", [("convnext_atto", "stem_0"), ("swin_tiny_patch4_window7_224", "patch_embed")])
def test_freeze_at_1_freezes_the_stem_of_transformers_alone(model, stem):
    backbone = TimmBackbone(model, freeze_at=1)
    frozen = {name.partition(".")[0] for name, p in backbone.body.named_parameters() if not p.requires_grad}
    assert stem in frozen and not any(name.startswith(("stages", "layers")) for name in frozen)


def test_folded_norms_compute_the_same(name):
    plain = TimmBackbone(name)
    folded = copy.deepcopy(plain)
    count = folded.fold_frozen_bn()
    assert list(folded.state_dict()) == list(plain.state_dict())
    num_norms = sum(key.endswith("running_mean") for key in plain.state_dict())
    assert count == num_norms
    if name.startswith(("convnext", "swin")):  # layer norms alone
        assert count == 0
        return
    assert count > 10
    randomize(plain)
    copy_state(plain, folded)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    results = []
    for model in (plain, folded, copy.deepcopy(folded)):
        model.double().eval()
        with torch.no_grad():
            without_grad = list(model(images).values())
        with_grad = list(model(images).values())
        weights = [torch.linspace(-1, 2, f.numel(), dtype=f.dtype).view(f.shape) for f in with_grad]
        gradients = torch.autograd.grad(sum((f * w).sum() for f, w in zip(with_grad, weights)), model.parameters())
        results.append([*without_grad, *with_grad, *gradients])
    for other in results[1:]:
        for made, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(made, want, rtol=1e-8, atol=1e-8 * float(want.detach().abs().max()))


def test_a_norm_is_not_folded_where_its_convolution_has_a_second_use():
    from timm.layers.norm_act import FrozenBatchNorm2d

    from retina_plugin.modeling.backbones.timm_frozen_bn import fold_timm_frozen_bn

    class SecondUse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8)

        def forward(self, x):
            x = self.conv(x)
            return [x + self.norm(x)]

    body, images = SecondUse(), torch.randn(1, 3, 16, 16)
    state, want = copy.deepcopy(body.state_dict()), body(images)[0]
    with pytest.raises(ConfigError, match="FOLD_FROZEN_BN is True, but SecondUse .* a second time"):
        fold_timm_frozen_bn(body, 3)
    assert body(images)[0].equal(want)
    assert all(value.equal(state[key]) for key, value in body.state_dict().items())


def make_cfg(name, *opts):
    cfg = get_cfg()
    mean, std = pixel_format(name)
    merge_config(cfg, get_config_file("Base-RetinaNet"), [
        *("MODEL.BACKBONE.NAME", "build_p3p7_timm_fpn_backbone", "MODEL.TIMM.NAME", name, "MODEL.DEVICE", "cpu"),
        *("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std, "MODEL.WEIGHTS", ""),
        *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 2, *opts),
    ])  # fmt: skip
    return cfg


def test_trains_and_detects_as_a_part_of_the_detector(name, seed):
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    model = build_model(make_cfg(name, "MODEL.CHANNELS_LAST", True, "TEST.PRECISION", "bf16"))
    target = Instances((96, 128), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 60.0, 70.0]])), gt_classes=torch.tensor([1]))
    batch = [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "instances": target}]
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    unused = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert trained and unused == []  # DistributedDataParallel would stop
    assert all(p.grad.isfinite().all() for p in trained)
    model.eval()(batch)


def test_levels_are_those_of_the_resnet_backbone():
    shapes = build_backbone(make_cfg("resnet18")).output_shape()
    assert {key: (shape.channels, shape.stride) for key, shape in shapes.items()} == {
        f"p{level}": (16, 2**level) for level in range(3, 8)
    }
    from_p5 = build_backbone(make_cfg("resnet18", "MODEL.FPN.TOP_BLOCK_IN_FEATURE", "p5"))
    assert from_p5.top_block.p6.in_channels == 16


@pytest.mark.parametrize(
    "opts, parts",
    [
        (("MODEL.TIMM.NAME", ""), ["MODEL.TIMM.NAME is empty"]),
        (("MODEL.TIMM.NAME", "tf_eficientnet_lite0"), ["tf_eficientnet_lite0", "Did you mean tf_efficientnet_lite0?"]),
        (("INPUT.FORMAT", "BGR"), ["INPUT.FORMAT BGR", "Set INPUT.FORMAT RGB"]),
        (("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]), ["103.53", "MODEL.PIXEL_MEAN [127.5, 127.5, 127.5]"]),
        (("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]), ["MODEL.PIXEL_STD [127.5, 127.5, 127.5]"]),
        (("MODEL.TIMM.OUT_INDICES", [1, 2, 3]), ["OUT_INDICES [1, 2, 3]", "[2, 4, 8, 16, 32]"]),
        (("MODEL.TIMM.OUT_INDICES", [2, 3, 9]), ["cannot be the backbone"]),
        (("MODEL.TIMM.NORM", "GN"), ["MODEL.TIMM.NORM is 'GN'", "FrozenBN, BN"]),
    ],
)
def test_what_cannot_work_is_one_sentence(opts, parts):
    with pytest.raises(ConfigError) as error:
        build_backbone(make_cfg("tf_efficientnet_lite0", *opts))
    (line,) = error.value.problems
    assert all(part in line for part in parts), line


def test_a_model_without_a_pyramid_is_refused():
    with pytest.raises(ConfigError, match="one feature map of each stride"):
        TimmBackbone("vit_tiny_patch16_224")


def test_other_numbers_of_channels():
    assert TimmBackbone("resnet18", channels=4)(torch.randn(1, 4, 64, 64))["res5"].shape == (1, 512, 2, 2)
    assert ShapeSpec(channels=512, stride=32) == TimmBackbone("resnet18").output_shape()["res5"]
