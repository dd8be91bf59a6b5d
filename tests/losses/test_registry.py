"""From configuration keys to losses."""

import pytest
import torch
from detectron2.config import get_cfg

from retina_plugin import add_retina_config, merge_config
from retina_plugin.losses import (
    CLASSIFICATION_LOSS_REGISTRY,
    OnlineHardExampleMining,
    SigmoidCrossEntropyLoss,
    SigmoidFocalLoss,
    SigmoidFocalStarLoss,
    SigmoidHingeLoss,
    build_classification_loss,
    register_classification_loss,
)

from .closed_forms import call_module

# name, keys of its own away from their defaults, what it must build.
ENTRIES = [
    ("cross_entropy", {}, SigmoidCrossEntropyLoss, {}),
    ("focal", {"FOCAL_LOSS_GAMMA": 0.7}, SigmoidFocalLoss, {"gamma": 0.7}),
    (
        "focal_star",
        {"FOCAL_STAR_GAMMA": 3.5, "FOCAL_STAR_BETA": -0.5},
        SigmoidFocalStarLoss,
        {"gamma": 3.5, "beta": -0.5},
    ),
    ("hinge", {"HINGE_MARGIN": 0.8}, SigmoidHingeLoss, {"margin": 0.8}),
    (
        "ohem",
        {"OHEM_BATCH_SIZE": 24, "OHEM_NMS_THRESH": 0.9},
        OnlineHardExampleMining,
        {"batch_size": 24, "nms_thresh": 0.9},
    ),
    (
        "ohem_1to3",
        {"OHEM_BATCH_SIZE": 24, "OHEM_NMS_THRESH": 0.9},
        OnlineHardExampleMining,
        {"batch_size": 24, "nms_thresh": 0.9, "one_to_three": True},
    ),
]
DEFAULTS = {
    "cross_entropy": SigmoidCrossEntropyLoss(alpha=0.25),
    "focal": SigmoidFocalLoss(alpha=0.25, gamma=2.0),
    "focal_star": SigmoidFocalStarLoss(alpha=0.25, gamma=2.0, beta=1.0),
    "hinge": SigmoidHingeLoss(alpha=0.25, margin=0.5),
    "ohem": OnlineHardExampleMining(alpha=0.25, batch_size=128, nms_thresh=0.5),
    "ohem_1to3": OnlineHardExampleMining(alpha=0.25, batch_size=128, nms_thresh=0.5, one_to_three=True),
}


def build(name, **keys):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    opts = [word for key, value in keys.items() for word in (f"MODEL.RETINANET.{key}", value)]
    cfg.merge_from_list(["MODEL.RETINANET.CLS_LOSS", name, *opts])
    return build_classification_loss(cfg)


def assert_same_loss(ours, expected):
    """The same value and gradient on random anchors, of which pairs share a box up to an IoU of about 0.7."""
    logits = torch.randn(1, 10, 10, 4, 3, requires_grad=True)
    labels = torch.randint(-1, 4, (1, 10, 10, 4))
    corner = (100.0 * torch.arange(200)).repeat(2).view(1, 10, 10, 4, 1)
    boxes = corner + torch.tensor([0.0, 0.0, 50.0, 50.0])
    boxes[:, 5:, ..., 2] += 20
    results = [call_module(loss, [logits], [labels], boxes=[boxes]) for loss in (ours, expected)]
    gradients = [torch.autograd.grad(result, logits)[0] for result in results]
    assert results[0] == results[1] > 0 and torch.equal(*gradients)


def test_every_loss_of_the_paper_is_registered():
    names = [name for name, _ in CLASSIFICATION_LOSS_REGISTRY]
    assert set(names) >= {"cross_entropy", "focal", "focal_star", "hinge", "ohem", "ohem_1to3"}
    assert set(DEFAULTS) == {entry[0] for entry in ENTRIES}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    assert_same_loss(build(name), DEFAULTS[name])


@pytest.mark.parametrize("name, keys, module, settings", ENTRIES)
@pytest.mark.parametrize(
    "alpha_keys, alpha",
    [
        ({"FOCAL_LOSS_ALPHA": 0.75}, 0.75),
        ({"FOCAL_LOSS_ALPHA": 0.0}, 0.0),
        ({"FOCAL_LOSS_ALPHA": -1.0}, None),
        ({"FOCAL_LOSS_ALPHA": None}, None),
        ({"FOCAL_LOSS_ALPHA_PER_CLASS": [0.9, 0.1, 0.6]}, [0.9, 0.1, 0.6]),
        ({"FOCAL_LOSS_ALPHA_PER_CLASS": (0, 1, 0.5), "FOCAL_LOSS_ALPHA": -1.0}, [0.0, 1.0, 0.5]),
    ],
)
def test_every_loss_reads_alpha_and_its_own_keys(name, keys, module, settings, alpha_keys, alpha):
    assert_same_loss(build(name, **keys, **alpha_keys), module(alpha=alpha, **settings))


@pytest.mark.parametrize("text, alpha", [("-1.0", None), ("null", None), ("0.75", 0.75)])
def test_alpha_of_a_yaml_file(text, alpha, tmp_path):
    path = tmp_path / "alpha.yaml"
    path.write_text(f"MODEL: {{RETINANET: {{NUM_CLASSES: 3, FOCAL_LOSS_ALPHA: {text}}}}}")
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(path))
    assert_same_loss(build_classification_loss(cfg), SigmoidFocalLoss(alpha=alpha))


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(
    "keys",
    [
        {"FOCAL_LOSS_ALPHA": -0.5},
        {"FOCAL_LOSS_ALPHA": -2.0},
        {"FOCAL_LOSS_ALPHA": 1.5},
        {"FOCAL_LOSS_ALPHA_PER_CLASS": [0.5, -1.0, 0.5]},
        {"FOCAL_LOSS_ALPHA_PER_CLASS": [0.5, 1.1, 0.5]},
    ],
)
def test_alpha_out_of_range_is_refused(name, keys):
    with pytest.raises(ValueError, match=r"alpha weighs the positive class and lies in \[0, 1\], got"):
        build(name, **keys)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("alphas", [[0.5], [0.5] * 4, [0.5] * 80])
def test_another_number_of_alphas_than_classes_is_refused(name, alphas):
    with pytest.raises(ValueError, match=rf"ALPHA_PER_CLASS has {len(alphas)} .* 3 classes of MODEL.RETINANET.NUM_CL"):
        build(name, FOCAL_LOSS_ALPHA_PER_CLASS=alphas)


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        ("focal", "FOCAL_LOSS_GAMMA", -0.1, "gamma must be a finite number >= 0"),
        ("focal_star", "FOCAL_STAR_GAMMA", 0.0, "gamma must be a finite number > 0"),
        ("focal_star", "FOCAL_STAR_BETA", float("inf"), "beta must be a finite number"),
        ("hinge", "HINGE_MARGIN", 0.0, "margin"),
        ("hinge", "HINGE_MARGIN", 1.1, "margin"),
        ("ohem", "OHEM_BATCH_SIZE", 3, "batch size"),
        ("ohem_1to3", "OHEM_BATCH_SIZE", 0, "batch size"),
        ("ohem", "OHEM_NMS_THRESH", 1.1, "NMS threshold"),
        ("ohem_1to3", "OHEM_NMS_THRESH", -0.1, "NMS threshold"),
        ("focal", "FOCAL_LOSS_GAMMA", None, "CLS_LOSS focal: .*NoneType"),
        ("focal_star", "FOCAL_STAR_GAMMA", None, "CLS_LOSS focal_star: .*NoneType"),
        ("cross_entropy", "FOCAL_LOSS_ALPHA_PER_CLASS", [0.5, None, 0.5], "CLS_LOSS cross_entropy: .*NoneType"),
    ],
)
def test_parameters_out_of_range_are_refused(name, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(name, **{key: value})


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match="focl"):
        build("focl")


def test_a_loss_names_the_keys_it_reads_where_it_is_registered():
    keys = {name: f.reads_keys for name, f in CLASSIFICATION_LOSS_REGISTRY if name in DEFAULTS}
    own = {name: {key for key in entry if key != "FOCAL_LOSS_GAMMA"} for name, entry, *_ in ENTRIES}
    assert {name: set(of_loss) for name, of_loss in keys.items()} == own


def test_a_registered_function_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(CLASSIFICATION_LOSS_REGISTRY, "_obj_map", dict(CLASSIFICATION_LOSS_REGISTRY))

    def my_loss(cfg):
        return SigmoidFocalLoss(gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)

    assert register_classification_loss("MY_KEY", "MY_OTHER_KEY")(my_loss) is my_loss
    assert my_loss.reads_keys == ("MY_KEY", "MY_OTHER_KEY")
    assert_same_loss(build("my_loss", FOCAL_LOSS_GAMMA=0.5), SigmoidFocalLoss(gamma=0.5))


def test_a_module_shows_its_parameters():
    assert repr(SigmoidFocalStarLoss(gamma=4.0, beta=0.5)) == (
        "SigmoidFocalStarLoss(alpha=None, gamma=4.0, beta=0.5, fused=True)"
    )
    assert repr(SigmoidHingeLoss(alpha=[0.25, 0.5])) == "SigmoidHingeLoss(alpha=[0.25, 0.5], margin=0.5, fused=False)"
