"""configs/paper: each row of the paper's tables is a file, and the model built from it is that row's.

``ROWS`` is Tables 1 to 3 (RetinaNet's rows) as the paper prints them, with what the captions and section 4 say
about them. Nothing in it is read from a configuration.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator

from retina_plugin import add_retina_config, merge_config
from retina_plugin.config import flatten
from retina_plugin.config.checks import check_model_config
from retina_plugin.losses import (
    LossContext,
    OnlineHardExampleMining,
    SigmoidCrossEntropyLoss,
    SigmoidFocalLoss,
    SigmoidFocalStarLoss,
    Targets,
)

PAPER = Path(__file__).parents[1] / "configs" / "paper"
CLASSES = 80


def ce(alpha):
    return SigmoidCrossEntropyLoss, {"alpha": alpha}


def fl(gamma, alpha):
    return SigmoidFocalLoss, {"alpha": alpha, "gamma": gamma}


def fl_star(gamma, beta):
    return SigmoidFocalStarLoss, {"alpha": 0.25, "gamma": gamma, "beta": beta}


def ohem(batch_size, nms_thresh, one_to_three=False):
    settings = {"batch_size": batch_size, "nms_thresh": nms_thresh, "one_to_three": one_to_three}
    return OnlineHardExampleMining, {"alpha": None, **settings}


@dataclass(frozen=True)
class Row:
    """A row; the defaults are those of the ablations."""

    label: str
    ap: float
    loss: tuple = fl(2.0, 0.25)
    scales: int = 3
    ratios: int = 3
    backbone: str = "R-50"
    size: int = 600
    split: str = "minival"
    longer: bool = False  # scale jitter and a schedule 1.5 times as long


ROWS = {
    "table1a/alpha_0.10": Row("alpha 0.10", 0.0, ce(0.10)),
    "table1a/alpha_0.25": Row("alpha 0.25", 10.8, ce(0.25)),
    "table1a/alpha_0.50": Row("alpha 0.50", 30.2, ce(0.50)),
    "table1a/alpha_0.75": Row("alpha 0.75", 31.1, ce(0.75)),
    "table1a/alpha_0.90": Row("alpha 0.90", 30.8, ce(0.90)),
    "table1a/alpha_0.99": Row("alpha 0.99", 28.7, ce(0.99)),
    "table1a/alpha_0.999": Row("alpha 0.999", 25.1, ce(0.999)),
    "table1b/gamma_0_alpha_0.75": Row("gamma 0, alpha 0.75", 31.1, fl(0.0, 0.75)),
    "table1b/gamma_0.1_alpha_0.75": Row("gamma 0.1, alpha 0.75", 31.4, fl(0.1, 0.75)),
    "table1b/gamma_0.2_alpha_0.75": Row("gamma 0.2, alpha 0.75", 31.9, fl(0.2, 0.75)),
    "table1b/gamma_0.5_alpha_0.50": Row("gamma 0.5, alpha 0.50", 32.9, fl(0.5, 0.50)),
    "table1b/gamma_1_alpha_0.25": Row("gamma 1, alpha 0.25", 33.7, fl(1.0, 0.25)),
    "table1b/gamma_2_alpha_0.25": Row("gamma 2, alpha 0.25", 34.0, fl(2.0, 0.25)),
    "table1b/gamma_5_alpha_0.25": Row("gamma 5, alpha 0.25", 32.2, fl(5.0, 0.25)),
    "table1c/scales_1_ratios_1": Row("scales 1, ratios 1", 30.3, scales=1, ratios=1),
    "table1c/scales_2_ratios_1": Row("scales 2, ratios 1", 31.9, scales=2, ratios=1),
    "table1c/scales_3_ratios_1": Row("scales 3, ratios 1", 31.8, scales=3, ratios=1),
    "table1c/scales_1_ratios_3": Row("scales 1, ratios 3", 32.4, scales=1, ratios=3),
    "table1c/scales_2_ratios_3": Row("scales 2, ratios 3", 34.2, scales=2, ratios=3),
    "table1c/scales_3_ratios_3": Row("scales 3, ratios 3", 34.0, scales=3, ratios=3),
    "table1c/scales_4_ratios_3": Row("scales 4, ratios 3", 33.8, scales=4, ratios=3),
    "table1d/ohem_batch_128_nms_0.7": Row("OHEM, batch 128, nms 0.7", 31.1, ohem(128, 0.7), backbone="R-101"),
    "table1d/ohem_batch_256_nms_0.7": Row("OHEM, batch 256, nms 0.7", 31.8, ohem(256, 0.7), backbone="R-101"),
    "table1d/ohem_batch_512_nms_0.7": Row("OHEM, batch 512, nms 0.7", 30.6, ohem(512, 0.7), backbone="R-101"),
    "table1d/ohem_batch_128_nms_0.5": Row("OHEM, batch 128, nms 0.5", 32.8, ohem(128, 0.5), backbone="R-101"),
    "table1d/ohem_batch_256_nms_0.5": Row("OHEM, batch 256, nms 0.5", 31.0, ohem(256, 0.5), backbone="R-101"),
    "table1d/ohem_batch_512_nms_0.5": Row("OHEM, batch 512, nms 0.5", 27.6, ohem(512, 0.5), backbone="R-101"),
    "table1d/ohem_1to3_batch_128_nms_0.5": Row(
        "OHEM 1:3, batch 128, nms 0.5", 31.1, ohem(128, 0.5, one_to_three=True), backbone="R-101"
    ),
    "table1d/ohem_1to3_batch_256_nms_0.5": Row(
        "OHEM 1:3, batch 256, nms 0.5", 28.3, ohem(256, 0.5, one_to_three=True), backbone="R-101"
    ),
    "table1d/ohem_1to3_batch_512_nms_0.5": Row(
        "OHEM 1:3, batch 512, nms 0.5", 24.0, ohem(512, 0.5, one_to_three=True), backbone="R-101"
    ),
    "table1d/focal": Row("FL", 36.0, backbone="R-101"),
    "table1e/R50_400": Row("R-50-FPN, 400 px", 30.5, size=400, split="test-dev"),
    "table1e/R50_500": Row("R-50-FPN, 500 px", 32.5, size=500, split="test-dev"),
    "table1e/R50_600": Row("R-50-FPN, 600 px", 34.3, size=600, split="test-dev"),
    "table1e/R50_700": Row("R-50-FPN, 700 px", 35.1, size=700, split="test-dev"),
    "table1e/R50_800": Row("R-50-FPN, 800 px", 35.7, size=800, split="test-dev"),
    "table1e/R101_400": Row("R-101-FPN, 400 px", 31.9, backbone="R-101", size=400, split="test-dev"),
    "table1e/R101_500": Row("R-101-FPN, 500 px", 34.4, backbone="R-101", size=500, split="test-dev"),
    "table1e/R101_600": Row("R-101-FPN, 600 px", 36.0, backbone="R-101", size=600, split="test-dev"),
    "table1e/R101_700": Row("R-101-FPN, 700 px", 37.1, backbone="R-101", size=700, split="test-dev"),
    "table1e/R101_800": Row("R-101-FPN, 800 px", 37.8, backbone="R-101", size=800, split="test-dev"),
    "table2/R101_800_jitter": Row("R-101-FPN", 39.1, backbone="R-101", size=800, split="test-dev", longer=True),
    "table2/X101_800_jitter": Row(
        "ResNeXt-101-32x8d-FPN", 40.8, backbone="X-101-32x8d", size=800, split="test-dev", longer=True
    ),
    "table3/cross_entropy": Row("CE", 31.1, ce(0.75)),
    "table3/focal": Row("FL", 34.0, fl(2.0, 0.25)),
    "table3/focal_star_gamma_2_beta_1": Row("FL*, gamma 2, beta 1", 33.8, fl_star(2.0, 1.0)),
    "table3/focal_star_gamma_4_beta_0": Row("FL*, gamma 4, beta 0", 33.9, fl_star(4.0, 0.0)),
}
every_row = pytest.mark.parametrize("name", ROWS)


@functools.cache
def config(name):
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(PAPER / f"{name}.yaml"))
    cfg.freeze()
    return cfg


@functools.cache
def model(name):
    check_model_config(config(name))
    with torch.device("meta"):  # no memory, no time
        return META_ARCH_REGISTRY.get(config(name).MODEL.META_ARCHITECTURE)(config(name))


def test_the_files_are_the_rows():
    files = {path.relative_to(PAPER).with_suffix("").as_posix() for path in PAPER.glob("*/*.yaml")}
    assert files == set(ROWS) and len(ROWS) == 7 + 7 + 7 + 10 + 10 + 2 + 4
    assert all(path.name.startswith("Base-") for path in PAPER.glob("*.yaml"))


@every_row
def test_loss_of_the_built_model(name):
    loss, (kind, settings) = model(name).classification_loss, ROWS[name].loss
    assert type(loss) is kind
    if kind is OnlineHardExampleMining:
        built = {key: getattr(loss, key) for key in settings if key != "alpha"}
        assert {"alpha": loss.cross_entropy.alpha, **built} == settings
    else:
        assert {"alpha": loss.alpha, **loss.settings} == settings


@every_row
def test_anchors_and_head_of_the_built_model(name):
    row = ROWS[name]
    per_cell = row.scales * row.ratios
    assert model(name).anchor_generator.num_cell_anchors == [per_cell] * 5
    assert model(name).head.cls_score.out_channels == per_cell * CLASSES
    assert model(name).head.bbox_pred.out_channels == per_cell * 4

    shapes = [model(name).backbone.output_shape()[f"p{level}"] for level in range(3, 8)]
    ratios = {1: [1.0], 3: [0.5, 1.0, 2.0]}[row.ratios]
    for level, anchors in zip(range(3, 8), build_anchor_generator(config(name), shapes).cell_anchors, strict=True):
        assert torch.equal(anchors[:, :2], -anchors[:, 2:])  # centered
        width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        built = torch.stack([(width * height).sqrt(), height / width], dim=1)
        sides = [2 ** (level + 2) * 2 ** (k / row.scales) for k in range(row.scales)]
        assert torch.allclose(built, torch.tensor([(side, ratio) for side in sides for ratio in ratios]), rtol=1e-5)


@every_row
def test_backbone_of_the_built_model(name):
    stages = model(name).backbone.bottom_up.stages
    blocks = {"R-50": [3, 4, 6, 3], "R-101": [3, 4, 23, 3], "X-101-32x8d": [3, 4, 23, 3]}[ROWS[name].backbone]
    assert [len(stage) for stage in stages] == blocks
    groups, width = {"X-101-32x8d": (32, 32 * 8)}.get(ROWS[name].backbone, (1, 64))
    assert all(block.conv2.groups == groups for stage in stages for block in stage)
    assert stages[0][0].conv2.out_channels == width
    weights = config(name).MODEL.WEIGHTS
    assert re.search(r"ImageNetPretrained/\w+/(.+)\.pkl$", weights)[1] == ROWS[name].backbone


@every_row
def test_what_all_rows_share(name):
    built, cfg = model(name), config(name)
    assert built.num_classes == CLASSES and built.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert built.loss_normalizer.mode == "positives"
    assert built.assigner.allow_low_quality_matches is False
    assert (built.assigner.thresholds, built.assigner.labels) == ([0.4, 0.5], [0, -1, 1])
    box_loss = built.box_loss
    assert box_loss.loss_type == "smooth_l1" and box_loss.smooth_l1_beta == pytest.approx(1 / 9, rel=0.02)
    assert [type(m).__name__ for m in built.head.cls_subnet] == ["Conv2d", "ReLU"] * 4
    assert cfg.MODEL.RETINANET.PRIOR_PROB == 0.01
    best = built.postprocessor
    assert (best.score_thresh, best.topk_candidates, best.nms_thresh) == (0.05, 1000, 0.5)
    assert (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) == ("coco_2017_train", "coco_2017_val")


@every_row
def test_image_sizes_and_augmentation(name):
    row, cfg = ROWS[name], config(name)
    longest = {400: 667, 500: 833, 600: 1000, 700: 1167, 800: 1333}[row.size]
    resize, flip = DatasetMapper.from_config(cfg, is_train=True)["augmentations"]
    assert type(resize) is ResizeShortestEdge and type(flip) is RandomFlip and flip.horizontal
    assert list(resize.short_edge_length) == ([640, 672, 704, 736, 768, 800] if row.longer else [row.size])
    assert not resize.is_range and resize.max_size == longest
    (resize,) = DatasetMapper.from_config(cfg, is_train=False)["augmentations"]
    assert set(resize.short_edge_length) == {row.size} and resize.max_size == longest


@every_row
def test_schedule(name):
    solver, longer = config(name).SOLVER, ROWS[name].longer
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (16, 0.01)
    assert (solver.LR_SCHEDULER_NAME, solver.GAMMA) == ("WarmupMultiStepLR", 0.1)
    assert (*solver.STEPS, solver.MAX_ITER) == ((90_000, 120_000, 135_000) if longer else (60_000, 80_000, 90_000))
    assert (solver.WEIGHT_DECAY, solver.MOMENTUM, solver.NESTEROV) == (1e-4, 0.9, False)
    assert not solver.CLIP_GRADIENTS.ENABLED


VARIED = {
    "table1a": ("Base-Ablation-R50-600", "RETINANET.CLS_LOSS RETINANET.FOCAL_LOSS_ALPHA"),
    "table1b": ("Base-Ablation-R50-600", "RETINANET.FOCAL_LOSS_GAMMA RETINANET.FOCAL_LOSS_ALPHA"),
    "table1c": ("Base-Ablation-R50-600", "ANCHOR_GENERATOR.SIZES ANCHOR_GENERATOR.ASPECT_RATIOS"),
    "table1d": ("Base-Ablation-R101-600", "RETINANET.CLS_LOSS RETINANET.FOCAL_LOSS_ALPHA RETINANET.OHEM_"),
    "table1e": ("Base-Ablation-R50-600", "INPUT.MIN_SIZE_ INPUT.MAX_SIZE_ WEIGHTS RESNETS.DEPTH"),
    "table2": ("table1e/R101_800", "INPUT.MIN_SIZE_TRAIN SOLVER.STEPS SOLVER.MAX_ITER WEIGHTS PIXEL_STD RESNETS."),
    "table3": ("Base-Ablation-R50-600", "RETINANET.CLS_LOSS RETINANET.FOCAL_"),
}


@pytest.mark.parametrize("table", VARIED)
def test_the_rows_of_a_table_vary_nothing_else(table):
    base, keys = VARIED[table]
    default = dict(flatten(config(base)))
    for name in (name for name in ROWS if name.startswith(f"{table}/")):
        varied = {key for key, value in flatten(config(name)) if value != default[key]}
        assert all(key.removeprefix("MODEL.").startswith(tuple(keys.split())) for key in varied), (name, varied)


@pytest.mark.parametrize(
    "names",
    [
        ("table1b/gamma_2_alpha_0.25", "table1c/scales_3_ratios_3", "table1e/R50_600", "table3/focal"),
        ("table1a/alpha_0.75", "table3/cross_entropy"),
        ("table1d/focal", "table1e/R101_600"),
    ],
)
def test_rows_that_are_one_setting(names):
    assert all(config(name) == config(names[0]) for name in names)


def test_gamma_0_is_alpha_balanced_cross_entropy():
    logits, labels = 3 * torch.randn(1, 4, 5, 9, CLASSES), torch.randint(-1, CLASSES + 1, (1, 4, 5, 9))
    targets, context = Targets(labels.flatten(1), torch.zeros(1, labels.numel(), 4)), LossContext(list)
    focal, balanced = (
        model(name).classification_loss([logits], targets, context, 1.0)
        for name in ("table1b/gamma_0_alpha_0.75", "table1a/alpha_0.75")
    )
    assert focal.item() == pytest.approx(balanced.item(), rel=1e-5)


@every_row
def test_a_file_begins_with_its_row(name):
    row, table = ROWS[name], name.split("/")[0].removeprefix("table")
    first = (PAPER / f"{name}.yaml").read_text().splitlines()[0]
    assert first == f"# Table {table}, {row.label}: {row.ap:.1f} AP on COCO {row.split}."


def test_the_readme_maps_rows_to_files():
    listed, table = [], None
    for line in (PAPER / "README.md").read_text().splitlines():
        table = line.removeprefix("## ") if line.startswith("## ") else table
        if cells := re.fullmatch(r"\| (.+) \| \[`(.+)\.yaml`\]\((.+)\.yaml\) \| ([\d.]+) \|", line):
            listed.append((table.split(":")[0], table.rsplit(" ")[-1], *cells.groups()))
    assert listed == [
        (f"Table {folder.removeprefix('table')}", row.split, row.label, stem, f"{folder}/{stem}", f"{row.ap:.1f}")
        for (folder, stem), row in ((name.split("/"), row) for name, row in ROWS.items())
    ]
