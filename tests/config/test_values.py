"""The table of values that keys may have."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer

from retina_plugin import ConfigError, check_config, get_cfg, merge_config
from retina_plugin.config import flatten
from retina_plugin.config.checks import check_model_config, require_values, value_problems, values

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = [*values.MODEL, *values.JOB, *values.TRAINING]
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def base():
    cfg = get_cfg()
    merge_config(cfg, str(CONFIGS / "Base-RetinaNet.yaml"))
    return cfg


def problems(base, *opts, replaced=()):
    cfg = base.clone()
    for key, value in zip(opts[::2], opts[1::2]):
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        assert name in node
        node[name] = value
    return list(value_problems(cfg, ROWS, replaced))


REFUSED = {
    "SOLVER.MAX_ITER": [0, -5],
    "SOLVER.IMS_PER_BATCH": [0, -2],
    "SOLVER.BASE_LR": [-0.1, NAN, INF, -INF],
    "SOLVER.MOMENTUM": [-0.1, 1.0, NAN],
    "SOLVER.WEIGHT_DECAY": [-1e-4, NAN],
    "SOLVER.WEIGHT_DECAY_NORM": [-1.0],
    "SOLVER.WEIGHT_DECAY_BIAS": [-1.0, NAN],
    "SOLVER.BIAS_LR_FACTOR": [-1.0, INF],
    "SOLVER.GAMMA": [-1.0, NAN],
    "SOLVER.STEPS": [(0,), (-1, 5), ("a",)],
    "SOLVER.WARMUP_FACTOR": [-1.0, NAN],
    "SOLVER.WARMUP_ITERS": [-1],
    "SOLVER.WARMUP_METHOD": ["liner", ""],
    "SOLVER.LR_SCHEDULER_NAME": ["WarmupCosine", "warmupcosinelr"],
    "SOLVER.CHECKPOINT_PERIOD": [0, -1],
    "DATALOADER.NUM_WORKERS": [-1],
    "DATALOADER.SAMPLER_TRAIN": ["RepeatFactorSampler"],
    "DATALOADER.MAX_UNREADABLE": [-2],
    "INPUT.FORMAT": ["RBG", "", "P", "I"],
    "INPUT.MIN_SIZE_TRAIN": [(), (-3,), ("a",), (NAN,), (INF,)],
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ["random"],
    "INPUT.MAX_SIZE_TRAIN": [0, -1],
    "INPUT.TILE.SIZE": [-1, 400.5],
    "INPUT.TILE.OVERLAP": [-1],
    "TEST.TILE.SIZE": [-400],
    "TEST.TILE.OVERLAP": [-1, "a"],
    "TEST.TILE.BATCH": [0],
    "INPUT.MIN_SIZE_TEST": [-1],
    "INPUT.MAX_SIZE_TEST": [0],
    "INPUT.RANDOM_FLIP": ["horizontally", "True"],
    "MODEL.DEVICE": ["gpu", "", "cuda:x", "meta", "cudaa"],
    "MODEL.PIXEL_MEAN": [[], [NAN, 1.0, 1.0], ["a", "b", "c"]],
    "MODEL.PIXEL_STD": [[], [0.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [INF, 1.0, 1.0]],
    "MODEL.RESNETS.DEPTH": [20, 0],
    "MODEL.RESNETS.NORM": ["batchnorm", "bn"],
    "MODEL.RESNETS.OUT_FEATURES": [[], ["res3", "res9"]],
    "MODEL.RESNETS.NUM_GROUPS": [0],
    "MODEL.RESNETS.WIDTH_PER_GROUP": [-4],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": [0],
    "MODEL.RESNETS.RES2_OUT_CHANNELS": [0],
    "MODEL.RESNETS.RES5_DILATION": [0, 3],
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [[False], [False, False, False, "a"]],
    "MODEL.FPN.NORM": ["BatchNorm"],
    "MODEL.FPN.FUSE_TYPE": ["mean"],
    "MODEL.FPN.OUT_CHANNELS": [0],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[], [[]], [[0.0]], [[-8.0]], [[NAN]], [["a"]], [[8.0], 16.0]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[[0.0]], [[-1.0]]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": [1.0, -0.1, NAN],
    "MODEL.RETINANET.NORM": ["LayerNorm"],
    "MODEL.RETINANET.NUM_CONVS": [-1],
    "MODEL.RETINANET.IOU_THRESHOLDS": [[], [NAN, 0.5], ["a", 0.5]],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": [-0.1, NAN],
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS": [[0.1, 2.0], [NAN]],
    "MODEL.RETINANET.SCORE_THRESH_TEST": [1.5, NAN],
    "MODEL.RETINANET.NMS_THRESH_TEST": [1.5, -0.5, NAN],
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": [0, -5],
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": [(0.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (NAN, 1.0, 1.0, 1.0)],
    "TEST.DETECTIONS_PER_IMAGE": [0, -1],
    "TEST.EXPECTED_RESULTS": [["bbox"], [["bbox", "AP", 38.5]], [["bbox", "AP", "38.5", 0.2]]],
    "SEED": [2**32, 2**40],
}


@pytest.mark.parametrize("key", REFUSED)
def test_values_that_cannot_work(base, key):
    assert not problems(base, key, dict(flatten(base))[key])
    for value in REFUSED[key]:
        (line,) = problems(base, key, value)
        assert line.startswith(f"{key} is '{value}', " if isinstance(value, str) else f"{key} is {value}, ")


@pytest.mark.parametrize("key", [key for key, values in REFUSED.items() if any(v is NAN or v == [NAN] for v in values)])
def test_an_integer_too_large_for_a_float_is_refused_as_nan_is(base, key):
    huge = 10**400
    value = huge if NAN in REFUSED[key] else [huge]
    (line,) = problems(base, key, value)
    assert line.startswith(f"{key} is {value}, ")


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.BASE_LR", 0.0),  # as when only statistics of norms are to change
        ("SOLVER.WARMUP_ITERS", 0),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("INPUT.MIN_SIZE_TEST", 0),  # Detectron2's word for: do not resize
        ("INPUT.MIN_SIZE_TRAIN", [0]),
        ("INPUT.FORMAT", "L"),
        ("INPUT.FORMAT", "HSV"),
        ("INPUT.FORMAT", "CMYK"),
        ("INPUT.FORMAT", "YUV-BT.601"),
        ("MODEL.DEVICE", "cpu"),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.PIXEL_MEAN", [1] * 4),
        ("MODEL.RESNETS.NORM", "naiveSyncBN_N"),
        ("MODEL.FPN.NORM", ""),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [32, 64]),  # one list for all levels
        ("MODEL.RETINANET.SCORE_THRESH_TEST", -1.0),
        ("MODEL.RETINANET.NMS_THRESH_TEST", 0.0),
        ("MODEL.RETINANET.NMS_THRESH_TEST", 1.0),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2]]),
        ("SEED", -7),
        ("SEED", 2**31),
        ("VIS_PERIOD", -1),
    ],
)
def test_unusual_values_that_work(base, key, value):
    assert not problems(base, key, value)


@pytest.mark.parametrize(
    "key, value, switch, on",
    [
        ("INPUT.CROP.TYPE", "abs", "INPUT.CROP.ENABLED", True),
        ("INPUT.CROP.SIZE", [0.0, 1.0], "INPUT.CROP.ENABLED", True),
        ("INPUT.CROP.SIZE", [384, 600], "INPUT.CROP.ENABLED", True),
        ("TEST.PRECISE_BN.NUM_ITER", 0, "TEST.PRECISE_BN.ENABLED", True),
        ("DATALOADER.REPEAT_THRESHOLD", -0.1, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0),
        ("INPUT.MIN_SIZE_TRAIN", (640, 672, 704), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        ("INPUT.MIN_SIZE_TRAIN", (800, 640), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
    ],
)
def test_keys_that_only_another_one_turns_on(base, key, value, switch, on):
    assert not problems(base, key, value)
    (line,) = problems(base, key, value, switch, on)
    assert line.startswith(f"{key} is ")


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        ("absolute", [600, 384], [0.9, 0.9]),
        ("absolute_range", [384, 600], [600, 384]),
        ("relative", [0.5, 1], [1.5, 1]),
    ],
)
def test_sizes_of_crops(base, kind, good, bad):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE")
    assert not problems(base, *crop, good)
    (line,) = problems(base, *crop, bad)
    assert line.startswith("INPUT.CROP.SIZE is ")


def test_a_name_that_was_meant(base):
    (line,) = problems(base, "MODEL.RETINANET.NORM", "SyncBn")
    assert line.endswith("Did you mean SyncBN?")
    (line,) = problems(base, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosine")
    assert line.endswith("Did you mean WarmupCosineLR?")


class ProjectTrainer(DefaultTrainer):
    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return torch.optim.lr_scheduler.PolynomialLR(optimizer)


def test_names_of_parts_that_a_project_replaces(base, tmp_path, monkeypatch):
    """As DeepLab's WarmupPolyLR, which only its own trainer knows."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = base.clone()
    cfg.OUTPUT_DIR, cfg.SOLVER.LR_SCHEDULER_NAME, cfg.MODEL.DEVICE = str(tmp_path), "WarmupPolyLR", "cpu"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    with pytest.raises(ConfigError, match="'WarmupPolyLR', which is none of WarmupMultiStepLR") as error:
        check_config(cfg)
    with pytest.raises(ConfigError) as of_project:
        check_config(cfg, trainer=ProjectTrainer)
    assert set(error.value.problems) - set(of_project.value.problems) == {error.value.problems[0]}


def test_keys_of_other_backbones_are_theirs(base):
    other = ("MODEL.BACKBONE.NAME", "build_resnest_fpn_backbone", "MODEL.RESNETS.DEPTH", 269)
    assert not problems(base, *other, "MODEL.FPN.FUSE_TYPE", "fast")


def test_null_is_no_value(base):
    cfg = base.clone()
    cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA = cfg.MODEL.FPN.NORM = None
    require_values(cfg)
    cfg.SOLVER.MAX_ITER = cfg.MODEL.PIXEL_MEAN = None
    for check in (check_config, check_model_config):
        with pytest.raises(ConfigError) as error:
            check(cfg)
        assert [line.partition(" is null")[0] for line in error.value.problems] == [
            "MODEL.PIXEL_MEAN",
            "SOLVER.MAX_ITER",
        ]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_passes(path):
    cfg = get_cfg()
    merge_config(cfg, str(path))
    assert not list(value_problems(cfg, ROWS))
