"""Tensors of another kind than the model's are refused before anything is loaded."""

import re
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.checkpoint.class_remap import COCO_NAMES
from retina_plugin.checkpoint.compare import strip_wrappers
from retina_plugin.tools.convert.run import convert_file

from .conftest import assert_same, copies, small_model

NAME = "2.weight"
NUMBERS = {
    dtype: lambda weight, dtype=dtype: (50 * weight).to(dtype)
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
        *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}


def nested(weight, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        return torch.nested.nested_tensor(list(weight), layout=layout)


# name -> (what makes it, what the error calls it)
OTHERS = {
    "quantized": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantized tensor"),
    "quantized by channel": (
        lambda w: torch.quantize_per_channel(w, torch.ones(len(w)), torch.zeros(len(w)), 0, torch.quint8),
        "quantized tensor",
    ),
    "sparse": (lambda w: w.to_sparse(), "sparse tensor"),
    "sparse rows": (lambda w: w.flatten(1).to_sparse_csr(), "sparse tensor"),
    "meta": (lambda w: w.to("meta"), "meta tensor"),
    "nested": (lambda w: nested(w, torch.strided), "nested tensor"),
    "nested, jagged": (lambda w: nested(w, torch.jagged), "nested tensor|tensor of torch.nested.*NestedTensor"),
    "conjugated": (lambda w: torch.complex(w, w).conj(), "conjugated tensor"),
}


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))


@pytest.fixture
def states():
    return copies(network()), network()


def refused(weights, model, path, strict, **options):
    """The error, after which the model is what it was."""
    before = copies(model)
    with pytest.raises(CheckpointError) as error:
        RetinaCheckpointer(model, strict=strict, **options).load(str(path))
    assert_same(model.state_dict(), before)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"weights {path}: ")
    return str(error.value)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_numbers_of_another_kind_are_refused_by_name_and_change_nothing(dtype, strict, states, tmp_path, report):
    weights, model = states
    weights[NAME] = NUMBERS[dtype](weights[NAME])
    for format_of_torch in (True, False):
        torch.save({"model": weights}, tmp_path / "m.pth", _use_new_zipfile_serialization=format_of_torch)
        error = refused(weights, model, tmp_path / "m.pth", strict)
        assert f"{NAME} is {dtype} in the file and torch.float32 in the model" in error
    report("Another kind of numbers: what is said", str(dtype), error.replace(f"{tmp_path}/", ""))


@pytest.mark.parametrize("kind", OTHERS)
def test_tensors_that_are_not_dense_are_refused_by_name_and_change_nothing(kind, states, tmp_path, report):
    weights, model = states
    make, called = OTHERS[kind]
    weights[NAME] = make(weights[NAME])
    torch.save({"model": weights}, tmp_path / "m.pth")
    error = refused(weights, model, tmp_path / "m.pth", strict=False)
    assert f"1 of its {len(weights)} tensors cannot be loaded: '{NAME}' is a " in error
    assert re.search(f"is a ({called}).* in the file and a dense tensor of numbers in the model", error)
    report("Another kind of numbers: what is said", kind, error.replace(f"{tmp_path}/", ""))


@pytest.mark.parametrize("kind", ["quantized", "sparse", "meta"])
def test_with_pickles_allowed_the_same_are_refused(kind, states, tmp_path):
    weights, model = states
    weights[NAME] = OTHERS[kind][0](weights[NAME])
    torch.save({"model": weights, "settings": Settings()}, tmp_path / "m.pth")
    error = refused(weights, model, tmp_path / "m.pth", strict=False, allow_pickle=True)
    assert f"'{NAME}' is a {kind} tensor in the file" in error


class Settings:
    """An object beside the weights."""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_floating_point_numbers_of_any_precision_are_loaded(dtype, states, tmp_path):
    def as_saved(value):
        return value.to(dtype) if value.is_floating_point() else value

    weights, model = states
    torch.save({"model": {name: as_saved(value) for name, value in weights.items()}}, tmp_path / "m.pth")
    RetinaCheckpointer(model, strict=True).load(str(tmp_path / "m.pth"))
    assert_same(model.state_dict(), {name: as_saved(v).to(v.dtype) for name, v in weights.items()})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32], ids=str)
def test_counters_of_norms_are_integers_or_their_average(dtype, tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(2))
    weights = copies(model)
    weights["0.num_batches_tracked"] = torch.tensor(7).to(dtype)
    torch.save({"model": weights}, tmp_path / "m.pth")
    RetinaCheckpointer(model, strict=True).load(str(tmp_path / "m.pth"))
    assert model[0].num_batches_tracked.item() == 7 and model[0].num_batches_tracked.dtype == torch.int64


def test_a_model_whose_own_code_refuses_weights_keeps_all_of_its_own(tmp_path):
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            if state_dict[f"{prefix}weight"].sum() > 0:
                raise ValueError("a sum above zero")
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = nn.Sequential(nn.Linear(2, 2), Refusing(2, 2))
    before = copies(model)
    with torch.no_grad():
        model[1].weight.fill_(-1)
    before = copies(model)
    torch.save({"model": {name: torch.ones_like(value) for name, value in before.items()}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m.pth: the model's own code refuses them \(a sum above zero\)$"):
        RetinaCheckpointer(model).load(str(tmp_path / "m.pth"))
    assert_same(model.state_dict(), before)


def test_converting_refuses_integers_too(tmp_path):
    names = ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight")
    torch.save({name: torch.ones(9, 4, 3, 3, dtype=torch.int8) for name in names}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=f"{names[0]} is torch.int8 in the file and floating-point in the"):
        convert_file(tmp_path / "m.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_class_layer_of_any_other_shape_is_refused(name, strict, tmp_path):
    model = small_model()
    weights = copies(model)
    for shape, more in (((), {"__author__": "x"}), ((720, 0), {}), ((80, 32, 3, 3), {"class_names": list(COCO_NAMES)})):
        other = {**weights, f"head.cls_score.{name}": torch.ones(shape)}
        torch.save({"model": other, **more}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=rf"head.cls_score.{name}(:| has) "):
            RetinaCheckpointer(model, strict=strict, class_names=COCO_NAMES).load(str(tmp_path / "m.pth"))
        assert_same(model.state_dict(), weights)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("head.classification_head.cls_logits.bias", ()),
        ("head.regression_head.bbox_reg.weight", None),
        ("backbone.body.layer1.0.conv2.weight", (7, 0)),
    ],
)
def test_converting_says_in_a_line_what_is_missing_or_of_another_shape(name, shape, tmp_path):
    with torch.device("meta"):
        state = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    other = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items() if key != name}
    torch.save({**other, **({} if shape is None else {name: torch.ones(shape)})}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}/m.pth: ") as error:
        convert_file(tmp_path / "m.pth", tmp_path / "out")
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["m.pth"]


WRAPPERS = ["module.", "model.", "_orig_mod.", "module.model.", "module._orig_mod."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_wrappers_put_before_all_names_is_removed(wrapper, states, tmp_path):
    weights, model = states
    torch.save({"model": {wrapper + name: value for name, value in weights.items()}}, tmp_path / "m.pth")
    RetinaCheckpointer(model, strict=True).load(str(tmp_path / "m.pth"))
    assert_same(model.state_dict(), weights)


def test_names_that_fit_are_not_shortened():
    state = nn.ModuleDict({"model": nn.BatchNorm1d(2)}).state_dict()
    names, versions = list(state), dict(state._metadata)
    strip_wrappers(state, lambda found: "model.weight" in found)
    assert list(state) == names and state._metadata == versions
    strip_wrappers(state, lambda found: "weight" in found)
    assert set(state) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert state._metadata[""]["version"] == 2
    mixed = OrderedDict({"model.a": 1, "loss.b": 2})
    strip_wrappers(mixed, lambda found: "a" in found)
    assert list(mixed) == ["model.a", "loss.b"]
