"""Traced, exported and scripted detectors detect at every size what the eager ones detect."""

import io
import itertools

import pytest
import torch
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes

from retina_plugin.modeling.backbones.frozen_bn import fold_frozen_bn

from ..engine.small import make_cfg

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SIZES = [(32, 32), (64, 96), (61, 130), (130, 61), (168, 136)]
MANY = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
DETECTRON = ("MODEL.ANCHOR_GENERATOR.NAME", "DetectronAnchorGenerator", "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5)
VARIANTS = {
    "default": (),
    "thousands of boxes": (*MANY, "MODEL.RETINANET.NUM_CLASSES", 40),
    "few candidates": (*MANY, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 7),
    "hardly any detection": ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.6),
    "torchvision's anchors": ("MODEL.ANCHOR_GENERATOR.NAME", "TorchvisionAnchorGenerator"),
    "Detectron's anchors": DETECTRON,
    "clipped, channels last": ("MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS", True, "MODEL.CHANNELS_LAST", True),
    "bf16, with equal scores": ("TEST.PRECISION", "bf16"),
}


def make_detector(seed, *opts):
    """A detector whose scores and boxes have some spread."""
    torch.manual_seed(seed)
    model = build_model(make_cfg(*opts)).eval()
    with torch.no_grad():
        model.head.cls_score.bias.zero_()
        raw = model.raw_predictions(images(seed, (64, 96)))
        for layer, levels, spread in ((model.head.cls_score, raw.logits, 2.0), (model.head.bbox_pred, raw.deltas, 0.5)):
            layer.weight.mul_(spread / torch.cat([x.flatten().float() for x in levels]).std())
        model.head.cls_score.bias.fill_(-3.0)
    return model


def images(seed, *sizes):
    generator = torch.Generator().manual_seed(seed)
    return [{"image": torch.rand(3, *size, generator=generator) * 255} for size in sizes]


def assert_equal_detections(found, expected):
    assert len(found) == len(expected)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_trace_is_right_at_every_size(seed, variant):
    model = make_detector(seed, *VARIANTS[variant])
    numbers = []
    for size in SIZES if variant == "default" else SIZES[::3]:
        adapter = TracingAdapter(model, images(seed, size))
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        for number, other in enumerate(SIZES):
            (image,) = inputs = images(seed + number, other)
            (found,) = adapter.outputs_schema(traced(image["image"]))
            (expected,) = model(inputs)
            assert_equal_detections(found["instances"], expected["instances"])
            numbers.append(len(expected["instances"]))
    assert max(numbers) > 0


@torch.no_grad()
def test_a_trace_of_several_images_is_right_at_every_size(seed):
    model = make_detector(seed)
    adapter = TracingAdapter(model, images(seed, *SIZES[1:3]))
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for number, sizes in enumerate(itertools.product(SIZES[1:], SIZES[:4])):
        inputs = images(seed + number, *sizes)
        found = adapter.outputs_schema(traced(*(image["image"] for image in inputs)))
        for ours, expected in zip(found, model(inputs), strict=True):
            assert_equal_detections(ours["instances"], expected["instances"])


def test_a_trace_with_gradients_needs_no_python(seed, tmp_path):
    """A folded batch norm is an autograd function in training, which no file can hold."""
    model = make_detector(seed, "MODEL.FPN.NORM", "FrozenBN")
    for norm in (level.norm for level in model.backbone.levels):
        norm.running_var.uniform_(0.5, 2)
    assert fold_frozen_bn(model.backbone) == 3
    (image,) = inputs = images(seed, (64, 64))
    adapter = TracingAdapter(model, inputs)
    torch.jit.save(torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False), tmp_path / "model.ts")
    (found,) = adapter.outputs_schema(torch.jit.load(tmp_path / "model.ts")(image["image"]))
    assert_equal_detections(found["instances"], model(inputs)[0]["instances"])


@torch.no_grad()
def test_detectron2s_export_model_can_evaluate_a_trace(seed):
    """What its --run-eval asks of a model, and what it does to each image."""
    model = make_detector(seed)
    assert isinstance(model, RetinaNet)
    adapter = TracingAdapter(model, images(seed, (64, 64)), None)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for number, (size, height, width) in enumerate([((64, 96), 128, 192), ((61, 130), 244, 520)]):
        image = images(seed + number, size)[0]["image"]
        instances = adapter.outputs_schema(traced(image))[0]["instances"]
        (expected,) = model([{"image": image, "height": height, "width": width}])
        assert_equal_detections(detector_postprocess(instances, height, width), expected["instances"])


@pytest.mark.parametrize("anchors, opset", [("DefaultAnchorGenerator", 11), ("TorchvisionAnchorGenerator", 17)])
@torch.no_grad()
def test_onnx_is_right_at_every_size(seed, anchors, opset):
    pytest.importorskip("onnx", reason="torch.onnx.export needs it")
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the file")
    model, file = make_detector(seed, "MODEL.ANCHOR_GENERATOR.NAME", anchors), io.BytesIO()
    adapter = TracingAdapter(model, images(seed, (64, 96))).eval()  # the exporter restores its mode
    axes = {"image": {1: "height", 2: "width"}}
    options = {"dynamo": False, "opset_version": opset, "input_names": ["image"], "dynamic_axes": axes}
    torch.onnx.export(adapter, adapter.flattened_inputs, file, **options)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for number, size in enumerate(SIZES):
        (image,) = inputs = images(seed + number, size)
        outputs = session.run(None, {"image": image["image"].numpy()})
        (found,) = adapter.outputs_schema([torch.from_numpy(output) for output in outputs])
        assert_equal_detections(found["instances"], model(inputs)[0]["instances"])


RESNET = (
    *("MODEL.BACKBONE.NAME", "build_p3p7_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16.0], [32.0], [64.0], [128.0], [256.0]]),
    *("MODEL.BACKBONE.FOLD_FROZEN_BN", True, "MODEL.PIXEL_STD", [580.0, 570.0, 570.0]),
)


@pytest.mark.parametrize("anchors", ["DefaultAnchorGenerator", "TorchvisionAnchorGenerator"])
@torch.no_grad()
def test_a_script_is_right_at_every_size(seed, anchors):
    model = make_detector(seed, *RESNET, "MODEL.ANCHOR_GENERATOR.NAME", anchors)
    head = model.head
    fields = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
    scripted = scripting_with_instances(model, fields)
    assert model.head is head
    for number, size in enumerate(SIZES[1:4]):
        inputs = images(seed + number, size)
        # Without the last step, which is not part of a script.
        expected = model.forward_inference(*_predict(model, inputs))[0]
        (found,) = scripted(inputs)
        assert len(expected) > 0
        assert_equal_detections(found, expected)


def _predict(model, inputs):
    padded = model.preprocess_image(inputs)
    features = [model.backbone(padded.tensor)[name] for name in model.head_in_features]
    return padded, features, model.head(features)


@torch.no_grad()
def test_parts_can_be_scripted(seed):
    model = make_detector(seed, *RESNET)
    features = [torch.randn(1, 16, size, size) for size in (16, 8, 4, 2, 1)]
    scripted = torch.jit.script(model.head)
    for levels, expected in zip(scripted(features), model.head(features)):
        assert all(torch.equal(x, y) for x, y in zip(levels, expected, strict=True))
    assert list(scripted.state_dict()) == list(model.head.state_dict())
    image = torch.rand(1, 3, 64, 96)
    expected = model.backbone(image)
    for name, level in torch.jit.script(model.backbone)(image).items():
        torch.testing.assert_close(level, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda model: model.train(), "it is in training"),
        (lambda model: setattr(model, "inference_precision", "bf16"), "TEST.PRECISION is not fp32"),
        (
            lambda model: setattr(model.postprocessor, "clip_before_nms", True),
            "MODEL.RETINANET.CLIP_BOXES_BEFORE_NMS is True",
        ),
        (lambda model: setattr(model, "box_coder", object()), "its box coder is another one"),
        (lambda model: setattr(model, "postprocessor", object()), "its postprocessor is another one"),
    ],
)
def test_what_a_script_cannot_do_is_refused(seed, change, reason):
    model = make_detector(seed, *RESNET)
    change(model)
    with pytest.raises(ValueError, match=f"FocalRetinaNet cannot be scripted: {reason}. Trace it"):
        torch.jit.script(model)


def test_torch_export_is_refused(seed):
    model = make_detector(seed)
    adapter = TracingAdapter(model, images(seed, (64, 64)))
    with pytest.raises(
        RuntimeError, match="cannot follow Detectron2's ImageList and Instances. Give a .*TracingAdapter"
    ):
        torch.export.export(adapter, adapter.flattened_inputs)
