"""The zoo by name. Files lie where Detectron2's own path handler keeps what it has downloaded, in the zoo's format."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from retina_plugin import ConfigError, add_retina_config, merge_config, model_zoo
from retina_plugin.config import flatten
from retina_plugin.config.checks import check_model_config

ROOT = Path(__file__).parents[1]
HOST = "https://dl.fbaipublicfiles.com/"
ROWS = {  # of Detectron2's zoo: depth, iterations, first drop of the learning rate
    "COCO-Detection/retinanet_R_50_FPN_1x": (50, 90000, 60000),
    "COCO-Detection/retinanet_R_50_FPN_3x": (50, 270000, 210000),
    "COCO-Detection/retinanet_R_101_FPN_3x": (101, 270000, 210000),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """put(address, content): the file that Detectron2 finds for an address, as if it had been downloaded."""
    folder = tmp_path_factory.mktemp("cache")

    def put(address, content):
        assert address.startswith(HOST)
        path = folder / address.removeprefix(HOST)
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            pickle.dump(content, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FVCORE_CACHE", str(folder))
        yield put


def as_numpy(state):
    return {name: value.numpy() for name, value in state.items()}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_detectron2s_names(name, suffix):
    depth, iterations, first_drop = ROWS[name]
    cfg = model_zoo.get_config(name + suffix)
    check_model_config(cfg)
    assert cfg.MODEL.RESNETS.DEPTH == depth
    assert cfg.MODEL.WEIGHTS == f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl"
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS[0]) == (iterations, first_drop)
    # What Detectron2's Base-RetinaNet.yaml gives all three.
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (640, 672, 704, 736, 768, 800)
    assert cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA == 0.0 and cfg.MODEL.RETINANET.IOU_THRESHOLDS == [0.4, 0.5]
    assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0] and cfg.INPUT.FORMAT == "BGR"
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.BASE_LR == 0.01

    address = model_zoo.get_config(name + suffix, trained=True).MODEL.WEIGHTS
    assert address == model_zoo.get_checkpoint_url(name + suffix)
    assert address.startswith(f"{HOST}detectron2/{name}/") and address.endswith(".pkl")


def test_every_file_of_configs_is_a_name():
    for path in (ROOT / "configs").rglob("*.yaml"):
        name = path.relative_to(ROOT / "configs").as_posix()
        for spelling in (name, name.removesuffix(".yaml")):
            assert Path(model_zoo.get_config_file(spelling)).samefile(path)
    by_hand = get_cfg()
    add_retina_config(by_hand)
    merge_config(by_hand, str(ROOT / "configs" / "paper" / "table3" / "focal.yaml"))
    assert model_zoo.get_config("paper/table3/focal") == by_hand


def test_our_r50_is_the_zoos_1x_row():
    ours, row = "retinanet_R50", "COCO-Detection/retinanet_R_50_FPN_1x"
    assert model_zoo.get_config(ours, trained=True) == model_zoo.get_config(row, trained=True)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("COCO-Detection/retinanet_R_50_FPN_2x.yaml", "COCO-Detection/retinanet_R_50_FPN_"),
        ("retinanet_r50", "retinanet_R50"),
        ("paper/table3/focl", "paper/table3/focal"),
        ("?", "Known: Base-RetinaNet, COCO-Detection/retinanet_R_101_FPN_3x"),
    ],
)
def test_unknown_names(name, meant):
    for function in (model_zoo.get_config, model_zoo.get_config_file, model_zoo.get_checkpoint_url, model_zoo.get):
        with pytest.raises(ConfigError) as error:
            function(name)
        assert f"no configuration '{name}'" in str(error.value) and meant in str(error.value)


@pytest.mark.parametrize("name", ["retinanet_X101", "digits", "paper/table3/focal.yaml"])
def test_names_without_trained_weights(name):
    with pytest.raises(
        ConfigError, match=f"no trained weights for '{name}'; there are for COCO-.*, retinanet_R50. Use"
    ):
        model_zoo.get(name, trained=True)


def test_a_trained_model_is_loaded_key_for_key(cache, caplog):
    name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    theirs = model_zoo.get_config(name)
    theirs.merge_from_list(["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.DEVICE", "cpu"])
    theirs.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    expected = build_model(theirs).state_dict()
    # Old files hold what are no parameters today.
    old = {"pixel_mean": torch.zeros(3, 1, 1), "anchor_generator.cell_anchors.0": torch.zeros(9, 4)}
    author = "Detectron2 Model Zoo"
    cache(model_zoo.get_checkpoint_url(name), {"model": as_numpy({**expected, **old}), "__author__": author})

    model = model_zoo.get(name, trained=True, device="cpu")
    assert model.training and model.device.type == "cpu"
    state = model.state_dict()
    assert set(state) - set(expected) == {"loss_normalizer.ema"}
    assert all(torch.equal(state[k], v) for k, v in expected.items())
    assert model.pixel_mean.flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])


def test_torchvisions_backbone_gives_the_features_that_it_gives_in_torchvision(cache):
    cfg = model_zoo.get_config("retinanet_X101")  # what another backbone had set is set anew
    model_zoo.use_imagenet_backbone(cfg, "torchvision/R-50")
    check_model_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    resnet = torchvision.models.resnet50(weights=None).eval()
    for norm in (m for m in resnet.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.2, 0.6)
    file = {"model": _named_as_in_the_zoo(resnet), "__author__": "torchvision", "matching_heuristics": True}
    cache(f"{HOST}detectron2/ImageNetPretrained/torchvision/R-50.pkl", file)

    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    pixels = torch.randint(0, 256, (3, 96, 128))
    with torch.no_grad():
        ours = model.backbone.bottom_up(model.preprocess_image([{"image": pixels}]).tensor)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = ((pixels / 255 - mean) / std)[None]
        x = resnet.layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x)))))
        for name, layer in (("res3", resnet.layer2), ("res4", resnet.layer3), ("res5", resnet.layer4)):
            x = layer(x)
            assert (ours[name] - x).abs().max() < 1e-4 * x.abs().max()


def _named_as_in_the_zoo(resnet):
    names = {}
    for name in resnet.state_dict():
        if name.endswith("num_batches_tracked"):
            continue
        renamed = name if "layer" in name else f"stem.{name}"
        for i in range(1, 5):
            renamed = renamed.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
        names[name] = renamed.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return as_numpy({new: resnet.state_dict()[old] for old, new in names.items()})


@pytest.mark.parametrize("name", model_zoo.IMAGENET_BACKBONES)
def test_backbones_change_what_belongs_to_them_alone(name):
    cfg = model_zoo.get_config("retinanet_R50")
    before = dict(flatten(cfg.clone()))
    model_zoo.use_imagenet_backbone(cfg, name)
    check_model_config(cfg)
    changed = {key for key, value in flatten(cfg) if value != before[key]}
    assert changed <= {*model_zoo.IMAGENET_BACKBONES[name], "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"}
    assert cfg.MODEL.WEIGHTS == f"detectron2://ImageNetPretrained/{name}.pkl"


def test_backbones_agree_with_our_configurations():
    for config, backbone in {
        "retinanet_R50": "MSRA/R-50",
        "retinanet_R101": "MSRA/R-101",
        "retinanet_X101": "FAIR/X-101-32x8d",
    }.items():
        cfg = model_zoo.get_config(config)
        before = cfg.clone()
        model_zoo.use_imagenet_backbone(cfg, backbone)
        assert cfg == before


def test_unknown_backbone():
    with pytest.raises(ConfigError, match="no ImageNet backbone 'MSRA/R50'. Did you mean MSRA/R-50"):
        model_zoo.use_imagenet_backbone(model_zoo.get_config("retinanet_R50"), "MSRA/R50")


def test_a_built_package_has_the_configurations(tmp_path):
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("retina_plugin", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=_not_of_the_sources)
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "-d", "out"], cwd=tmp_path, check=True)
    built = tmp_path / "out" / "retina_plugin" / "configs"
    files = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(built) for path in built.rglob("*.yaml")} == files
    assert not any(path.is_symlink() for path in (built.parent, built, *built.rglob("*")))


def _not_of_the_sources(folder, names):
    built = ["configs"] if Path(folder).name == "retina_plugin" else []
    return ["__pycache__", *built]
