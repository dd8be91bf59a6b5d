"""What is refused before a job starts."""

import itertools
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model

from retina_plugin import ConfigError, add_retina_config, check_config, merge_config
from retina_plugin.config import flatten
from retina_plugin.config.checks import check_model_config
from retina_plugin.data.dataset_checks import check_class_count
from retina_plugin.losses import CLASSIFICATION_LOSS_REGISTRY
from retina_plugin.modeling import FocalRetinaNet

BASE = str(Path(__file__).parents[2] / "configs" / "Base-RetinaNet.yaml")
OK = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", ("checked_set",), "DATASETS.TEST", ("checked_set",)]


@pytest.fixture(autouse=True)
def checked_set(tmp_path):
    """A registered data set of 80 classes whose files exist."""
    (tmp_path / "set.json").write_text("{}")
    DatasetCatalog.register("checked_set", list)
    MetadataCatalog.get("checked_set").set(
        json_file=str(tmp_path / "set.json"),
        image_root=str(tmp_path),
        thing_classes=[f"c{i}" for i in range(80)],
    )
    yield
    DatasetCatalog.remove("checked_set")
    MetadataCatalog.remove("checked_set")


def make_cfg(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, BASE, [*OK, *opts])
    return cfg


def problems(*opts, **job):
    with pytest.raises(ConfigError) as error:
        check_config(make_cfg(*opts), **job)
    return error.value.problems


def test_a_sound_configuration_passes():
    check_config(make_cfg())


def test_the_configuration_that_a_training_leaves_passes(tmp_path):
    """YAML turns its tuples within tuples, which R-CNN's defaults have, into lists."""
    (tmp_path / "config.yaml").write_text(make_cfg().dump())
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, str(tmp_path / "config.yaml"))
    assert isinstance(cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[0], list)
    check_config(cfg)


@pytest.mark.parametrize(
    "loss, key, value, meant",
    [
        ("focal", "FOCAL_STAR_GAMMA", 4.0, "focal_star"),
        ("cross_entropy", "FOCAL_STAR_BETA", 0.0, "focal_star"),
        ("focal_star", "OHEM_BATCH_SIZE", 256, "ohem"),
        ("hinge", "OHEM_NMS_THRESH", 0.7, "ohem"),
        ("ohem_1to3", "HINGE_MARGIN", 0.9, "hinge"),
    ],
)
def test_a_key_of_another_loss_is_refused(loss, key, value, meant):
    (problem,) = problems("MODEL.RETINANET.CLS_LOSS", loss, f"MODEL.RETINANET.{key}", value)
    assert f"{key} is set to {value}" in problem and problem.endswith(f"CLS_LOSS {meant}?")
    check_config(make_cfg("MODEL.RETINANET.CLS_LOSS", meant, f"MODEL.RETINANET.{key}", value))


def test_a_loss_of_ones_own_may_read_any_key():
    CLASSIFICATION_LOSS_REGISTRY.register(focal_star_of_mine)
    check_config(make_cfg("MODEL.RETINANET.CLS_LOSS", "focal_star_of_mine", "MODEL.RETINANET.FOCAL_STAR_GAMMA", 4.0))


def focal_star_of_mine(cfg):
    return torch.nn.Identity()


@pytest.mark.parametrize(
    "key, value, hint",
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", 3, "Did you mean MODEL.RETINANET.NUM_CLASSES?"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, "Did you mean MODEL.RETINANET.SCORE_THRESH_TEST?"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "Did you mean MODEL.RETINANET.BBOX_REG_LOSS_TYPE?"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 5, "Remove it."),
        ("MODEL.MASK_ON", True, "Remove it."),
        ("TEST.AUG.ENABLED", True, "Remove it."),
    ],
)
def test_settings_of_rcnn(key, value, hint):
    (line,) = problems(key, value)
    assert line.startswith(f"{key} is set to {value}") and line.endswith(hint)


def test_settings_of_rcnn_do_not_stop_an_evaluation():
    check_config(make_cfg("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3), eval_only=True)


def test_every_twin_exists():
    from retina_plugin.config import flatten
    from retina_plugin.config.checks.model import _TWINS

    known = dict(flatten(make_cfg()))
    assert set(_TWINS) | set(_TWINS.values()) <= set(known)


def test_settings_of_rcnn_concern_our_detector_alone():
    check_config(make_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"))


@pytest.mark.parametrize(
    "key, value, meant",
    [
        ("MODEL.META_ARCHITECTURE", "FocalRetinanet", "FocalRetinaNet"),
        ("MODEL.BACKBONE.NAME", "build_p3p7_resnet_fpn", "build_p3p7_resnet_fpn_backbone"),
        ("MODEL.RETINANET.HEAD_NAME", "RetinanetHead", "RetinaNetHead"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "TorchVisionAnchorGenerator", "TorchvisionAnchorGenerator"),
        ("MODEL.RETINANET.CLS_LOSS", "focl", "focal"),
        ("DATASETS.TEST", ("checkd_set",), "checked_set"),
    ],
)
def test_names_that_nothing_registers(key, value, meant):
    (line,) = problems(key, value)
    assert f"Did you mean {meant}?" in line


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"]),
        ("MODEL.RETINANET.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        ("MODEL.FPN.IN_FEATURES", ["res4", "res5"]),
        ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
        + ("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    ],
)
def test_levels_that_the_head_does_not_use_or_the_backbone_does_not_make(opts):
    lines = problems(*opts)
    assert any(line.startswith("MODEL.RETINANET.IN_FEATURES is") for line in lines)


@pytest.mark.parametrize("name", ["build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"])
def test_stages_that_the_resnet_does_not_give_to_the_pyramid(name):
    (line,) = problems("MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"])
    assert line.startswith("MODEL.FPN.IN_FEATURES has ['res3'], but MODEL.RESNETS.OUT_FEATURES is ['res4', 'res5']")


def test_anchor_lists_that_do_not_fit_the_levels():
    (line,) = problems("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128]])
    assert line.startswith("MODEL.ANCHOR_GENERATOR.SIZES has 3 lists for the 5 levels")
    check_config(make_cfg("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]]))


def test_one_list_of_anchors_for_all_levels_may_be_flat():
    """As in Detectron2's defaults."""
    cfg = make_cfg(
        "MODEL.ANCHOR_GENERATOR.SIZES", [32.0, 64.0], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [0.5, 1.0, 2.0]
    )
    check_config(cfg)
    assert build_model(cfg).anchor_generator.num_anchors == [6] * 5


def test_rotated_anchors():
    (line,) = problems("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator")
    assert line.startswith("MODEL.ANCHOR_GENERATOR.NAME is 'RotatedAnchorGenerator', whose boxes are rotated")


def test_a_mean_and_a_deviation_for_each_channel():
    (line,) = problems("MODEL.PIXEL_MEAN", [110.0])
    assert line.startswith("MODEL.PIXEL_MEAN has 1 numbers and MODEL.PIXEL_STD 3")
    four = ("MODEL.PIXEL_MEAN", [110.0] * 4, "MODEL.PIXEL_STD", [58.0] * 4)
    check_config(make_cfg(*four))


def test_class_count_that_disagrees_with_the_data():
    (line,) = problems("MODEL.RETINANET.NUM_CLASSES", 3)
    assert line == (
        "MODEL.RETINANET.NUM_CLASSES is 3, but data set 'checked_set' has 80 classes (c0, c1, c2, ...). Set it to 80"
    )
    cfg = make_cfg("MODEL.RETINANET.NUM_CLASSES", 3)
    check_model_config(cfg)  # which knows no data
    with pytest.raises(ConfigError, match="80 classes"):
        check_class_count(cfg, "checked_set")


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "set.json").unlink()
    (line,) = problems()
    assert line.startswith(f"data set 'checked_set' is not on this machine: no {tmp_path / 'set.json'}. Correct the")


def test_files_below_the_folder_of_built_in_sets_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "set.json").unlink()
    (line,) = problems()
    assert f"in $DETECTRON2_DATASETS (now {tmp_path}); put it there" in line


def test_evaluation_leaves_the_training_sets_alone():
    opts = ("DATASETS.TRAIN", ("nowhere_train",))
    (line,) = problems(*opts)
    assert "'nowhere_train' is not registered" in line
    check_config(make_cfg(*opts), eval_only=True)
    assert problems("DATASETS.TEST", (), eval_only=True) == ["DATASETS.TEST names no data set"]


def test_more_processes_than_gpus():
    count = torch.cuda.device_count() + 7
    (line,) = problems("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", count, num_gpus=count)
    assert line.startswith(f"--num-gpus {count}: torch {torch.__version__} sees {count - 7} GPUs")
    assert f"MODEL.DEVICE cpu runs {count} processes on the CPU" in line
    check_config(make_cfg("SOLVER.IMS_PER_BATCH", count), num_gpus=count)


def test_several_processes_on_one_named_gpu():
    (line,) = problems("MODEL.DEVICE", "cuda:0", num_gpus=2)
    assert line.startswith("--num-gpus 2 with MODEL.DEVICE cuda:0: every process would take that one. Set it to cuda")


@pytest.mark.parametrize(
    ("images", "num_gpus", "num_machines", "hint"),
    [(16, 3, 1, "Set it to 15 or 18"), (16, 4, 3, "Set it to 12 or 24"), (2, 4, 1, "Set it to 4")],
)
def test_images_that_processes_cannot_share_equally(images, num_gpus, num_machines, hint):
    job = {"num_gpus": num_gpus, "num_machines": num_machines}
    (line,) = problems("SOLVER.IMS_PER_BATCH", images, **job)
    assert line.startswith(f"SOLVER.IMS_PER_BATCH is {images}") and line.endswith(hint)
    check_config(make_cfg("SOLVER.IMS_PER_BATCH", images), **job, eval_only=True)
    check_config(make_cfg("SOLVER.IMS_PER_BATCH", images, "SOLVER.REFERENCE_WORLD_SIZE", 2), **job)


def test_a_configuration_without_the_plugins_keys():
    cfg = get_cfg()
    for check in (check_config, check_model_config):
        with pytest.raises(ConfigError, match="add_retina_config"):
            check(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_p3p7_resnet_fpn_backbone"
    with pytest.raises(ConfigError, match="add_retina_config"):
        build_backbone(cfg)


def test_mixed_precision_without_a_gpu():
    (line,) = problems("SOLVER.AMP.ENABLED", True)
    assert line.startswith("SOLVER.AMP.ENABLED with SOLVER.AMP.PRECISION fp16 needs a GPU")
    assert "Set SOLVER.AMP.PRECISION to bf16" in line
    check_config(make_cfg("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bf16"))


def test_evaluation_of_a_model_trained_with_mixed_precision_needs_no_gpu():
    check_config(make_cfg("SOLVER.AMP.ENABLED", True), eval_only=True)
    check_config(make_cfg("SOLVER.AMP.PRECISION", "bf16"), eval_only=True)


def test_a_precision_of_training_that_is_not_turned_on():
    (line,) = problems("SOLVER.AMP.PRECISION", "bf16")
    assert line.startswith("SOLVER.AMP.PRECISION is bf16, but SOLVER.AMP.ENABLED is False")


@pytest.mark.parametrize(
    "key, value, names",
    [
        ("TEST.PRECISION", "bf61", "fp32, bf16, fp16. Did you mean bf16?"),
        ("TEST.PRECISION", "float16", "fp32, bf16, fp16."),
        ("SOLVER.AMP.PRECISION", "fp61", "fp16, bf16. Did you mean fp16?"),
        ("SOLVER.AMP.PRECISION", "fp32", "fp16, bf16."),
    ],
)
def test_precisions_that_do_not_exist(key, value, names):
    (line,) = problems(key, value)
    assert line.startswith(f"{key} is '{value}', which is none of {names}")
    with pytest.raises(ConfigError, match=key):
        check_model_config(make_cfg(key, value))


def test_keys_of_speed_survive_a_file(tmp_path):
    chosen = {"MODEL.CHANNELS_LAST": True, "MODEL.BACKBONE.FOLD_FROZEN_BN": True}
    chosen |= {"TEST.PRECISION": "fp16", "SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "bf16"}
    path = tmp_path / "config.yaml"
    path.write_text(make_cfg(*itertools.chain(*chosen.items())).dump())
    cfg = get_cfg()
    add_retina_config(cfg)
    off = {**dict.fromkeys(chosen, False), "TEST.PRECISION": "fp32", "SOLVER.AMP.PRECISION": "fp16"}
    assert {key: value for key, value in flatten(cfg) if key in chosen} == off
    merge_config(cfg, str(path))
    assert {key: value for key, value in flatten(cfg) if key in chosen} == chosen
    check_config(cfg)
    model = build_model(cfg)
    assert model.channels_last and model.inference_precision == "fp16"
    assert type(model.backbone.bottom_up.stem.conv1) is not type(model.backbone.fpn_lateral3)  # folded


def test_a_test_set_that_is_not_about_boxes():
    MetadataCatalog.get("checked_set").evaluator_type = "sem_seg"
    (line,) = problems()
    assert "'checked_set' of DATASETS.TEST has evaluator type 'sem_seg'" in line


def test_a_subclass_is_checked_like_the_detector():
    @META_ARCH_REGISTRY.register()
    class CheckedRetinaNet(FocalRetinaNet):
        pass

    lines = problems("MODEL.META_ARCHITECTURE", "CheckedRetinaNet", "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    assert len(lines) == 1 and "MODEL.ROI_HEADS.NUM_CLASSES" in lines[0]


@pytest.mark.parametrize(
    "key, value", [("TOP_BLOCK_IN_FEATURE", "p5"), ("TOP_BLOCK_RELU", False), ("SIZE_DIVISIBILITY", 128)]
)
def test_a_pyramid_that_the_backbone_does_not_read(key, value):
    name = "build_retinanet_resnet_fpn_backbone"
    (line,) = problems("MODEL.BACKBONE.NAME", name, f"MODEL.FPN.{key}", value)
    assert line.startswith(f"MODEL.FPN.{key} is {value}") and line.endswith(
        "Did you mean build_p3p7_resnet_fpn_backbone?"
    )
    check_config(make_cfg("MODEL.BACKBONE.NAME", name))


def test_levels_that_another_backbone_does_not_make():
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RETINANET.IN_FEATURES", ["p3", "p7"])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
    with pytest.raises(ConfigError, match=r"\['p7'\], but the backbone makes \['p3', 'p4', 'p5', 'p6'\]"):
        build_model(cfg)


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(ConfigError(["one", "two"])))
    assert error.problems == ["one", "two"] and str(error) == "one\ntwo"


def test_all_problems_are_reported_at_once():
    wrong = ("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.RETINANET.CLS_LOSS", "x", "DATASETS.TEST", ("y",))
    assert len(problems(*wrong)) == 3


@pytest.mark.parametrize(
    "opts, part",
    [
        (("SOLVER.ACCUMULATE_STEPS", 0), "SOLVER.ACCUMULATE_STEPS is 0; a step has at least 1 micro-batch"),
        (("SOLVER.ACCUMULATE_STEPS", 3), "SOLVER.ACCUMULATE_STEPS 3 do not divide evenly.*multiple of 3, such as 18"),
        (("SOLVER.MAX_NONFINITE_STEPS", -1), "SOLVER.MAX_NONFINITE_STEPS is -1; it is a number of steps"),
    ],
)
def test_settings_of_the_step(opts, part):
    (problem,) = problems(*opts)
    assert re.search(part, problem)
    check_config(make_cfg(*opts), eval_only=True)


def test_parts_of_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    opts = ("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", 16, "SOLVER.ACCUMULATE_STEPS")
    check_config(make_cfg(*opts, 8), num_gpus=2)
    (problem,) = problems(*opts, 16, num_gpus=2)
    assert "2 processes with SOLVER.ACCUMULATE_STEPS 16 do not divide evenly" in problem and "such as 32" in problem


@pytest.mark.parametrize(
    "opts, part",
    [
        (("CLIP_VALUE", 0.0), "CLIP_VALUE is 0.0"),
        (("CLIP_VALUE", -1.0), "CLIP_VALUE is -1.0"),
        (("CLIP_VALUE", math.nan), "CLIP_VALUE is nan"),
        (("CLIP_VALUE", math.inf), "CLIP_VALUE is inf"),
        (("CLIP_TYPE", "nrom"), "CLIP_TYPE is 'nrom', which is none of value, norm. Did you mean norm?"),
        (("CLIP_TYPE", "norm", "NORM_TYPE", 0.0), "NORM_TYPE is 0.0"),
    ],
)
def test_clipping_that_would_do_harm(opts, part):
    opts = [f"SOLVER.CLIP_GRADIENTS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    check_config(make_cfg(*opts))  # it is off
    (problem,) = problems("SOLVER.CLIP_GRADIENTS.ENABLED", True, *opts)
    assert f"SOLVER.CLIP_GRADIENTS.{part}" in problem


LOSSES = ("TEST.VAL_LOSS_PERIOD", 10)
BY_LOSS = (*LOSSES, "TEST.BEST_CHECKPOINT.METRIC", "validation/total_loss", "TEST.BEST_CHECKPOINT.MODE", "min")
BY_AP = ("TEST.EVAL_PERIOD", 10, "TEST.BEST_CHECKPOINT.METRIC", "bbox/AP")


@pytest.mark.parametrize(
    "opts",
    [
        LOSSES,
        BY_LOSS,
        (*BY_LOSS, "TEST.EARLY_STOPPING.PATIENCE", 3, "TEST.EARLY_STOPPING.MIN_DELTA", 0.1),
        (*BY_AP, "TEST.EARLY_STOPPING.PATIENCE", 3),
        ("TEST.BEST_CHECKPOINT.METRIC", "bbox/AP-c7"),
        ("DETERMINISTIC", True, "SEED", 0),
    ],
)
def test_sound_ways_to_watch_a_training(opts):
    check_config(make_cfg(*opts))


@pytest.mark.parametrize(
    "opts, message",
    [
        (("LOG_PERIOD", 0), "LOG_PERIOD is 0, but it is a number of iterations: at least 1"),
        (("TEST.VAL_LOSS_PERIOD", -1), "TEST.VAL_LOSS_PERIOD is -1, but it is a number of iterations, or 0 for never"),
        (("TEST.EVAL_PERIOD", -5), "TEST.EVAL_PERIOD is -5, but it is"),
        (("TEST.EARLY_STOPPING.PATIENCE", -1), "TEST.EARLY_STOPPING.PATIENCE is -1, but it is a number of evaluations"),
        ((*BY_AP, "TEST.EARLY_STOPPING.PATIENCE", 2, "TEST.EARLY_STOPPING.MIN_DELTA", -0.5), "at least 0"),
        (("TEST.AP_DETECTIONS_PER_IMAGE", 5), "TEST.AP_DETECTIONS_PER_IMAGE is 5, but it is a number of detections"),
        (
            ("TEST.VAL_LOSS_PERIOD", 5, "DATASETS.TEST", ()),
            "TEST.VAL_LOSS_PERIOD is 5, but DATASETS.TEST names no data set",
        ),
        (
            ("TEST.VAL_LOSS_PERIOD", 5, "MODEL.META_ARCHITECTURE", "RetinaNet"),
            "validation losses are those of FocalRetinaNet, not of RetinaNet",
        ),
        ((*BY_LOSS, "TEST.VAL_LOSS_PERIOD", 0), "'validation/total_loss', but TEST.VAL_LOSS_PERIOD is 0: set it"),
        ((*BY_LOSS, "TEST.BEST_CHECKPOINT.MODE", "max"), "a loss is best when it is low: set the mode to min"),
        ((*BY_AP, "TEST.BEST_CHECKPOINT.MODE", "min"), "an AP is best when it is high: set the mode to max"),
        ((*BY_AP, "TEST.BEST_CHECKPOINT.MODE", "maximum"), "which is none of max, min. Did you mean max?"),
        (("TEST.BEST_CHECKPOINT.METRIC", "AP"), "which no evaluation gives. There are: bbox/AP, bbox/AP50"),
        (("TEST.BEST_CHECKPOINT.METRIC", "bbox/Ap50"), "which no evaluation gives. Did you mean bbox/AP50?"),
        ((*BY_AP, "DATASETS.TEST", ()), "but DATASETS.TEST names no data set to evaluate"),
        (("TEST.EARLY_STOPPING.PATIENCE", 3), "TEST.BEST_CHECKPOINT.METRIC, by which it judges, is empty"),
        (
            (*BY_AP, "TEST.EVAL_PERIOD", 0, "TEST.EARLY_STOPPING.PATIENCE", 3),
            "TEST.EVAL_PERIOD is 0: there is no evaluation before the end",
        ),
        (("TEST.EARLY_STOPPING.MIN_DELTA", 0.1), "nothing stops early: TEST.EARLY_STOPPING.PATIENCE is 0"),
        (("DETERMINISTIC", True), "DETERMINISTIC is True, but SEED is -1, another one in each run"),
        (("DETERMINISTIC", True, "SEED", 1, "CUDNN_BENCHMARK", True), "CUDNN_BENCHMARK lets cuDNN choose"),
    ],
)
def test_ways_to_watch_a_training_that_cannot_work(opts, message):
    (line,) = problems(*opts)
    assert message in line
    if opts[-2:] != ("DATASETS.TEST", ()):
        check_config(make_cfg(*opts), eval_only=True)  # which does not train


def test_tiles_that_cannot_be():
    tiles = ("TEST.TILE.SIZE", 400, "TEST.TILE.OVERLAP", 399, "INPUT.TILE.SIZE", 400, "INPUT.TILE.OVERLAP", 0)
    check_config(make_cfg(*tiles))
    check_config(make_cfg("TEST.TILE.SIZE", 400, "MODEL.META_ARCHITECTURE", "RetinaNet"))
    check_config(make_cfg("TEST.TILE.OVERLAP", 5000))  # of no tiles
    (line,) = problems("TEST.TILE.SIZE", 400, "TEST.TILE.OVERLAP", 400)
    assert line.startswith("TEST.TILE.OVERLAP is 400, but tiles of TEST.TILE.SIZE 400 can share less")
    (line,) = problems("INPUT.TILE.SIZE", 100)
    assert line.startswith("INPUT.TILE.OVERLAP is 100, but tiles of INPUT.TILE.SIZE 100 can share less")
    check_config(make_cfg("INPUT.TILE.SIZE", 100), eval_only=True)
    (line,) = problems("TEST.TILE.SIZE", 400, "MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    assert "merged for the boxes of a RetinaNet, not for what SemanticSegmentor finds" in line
    masks = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", True)
    (line,) = problems(*masks, "INPUT.TILE.SIZE", 400)
    assert line.startswith("INPUT.TILE.SIZE is 400, but MODEL.MASK_ON is True")


def test_a_validation_loss_on_a_set_without_annotations(tmp_path):
    (tmp_path / "set.json").write_text('{"images": [{"id": 1}], "categories": []}')
    (line,) = problems(*LOSSES)
    assert line.startswith("TEST.VAL_LOSS_PERIOD is 10, but data set 'checked_set' of DATASETS.TEST has no annotations")


def test_the_metric_of_one_of_several_sets_is_named_with_it(tmp_path):
    MetadataCatalog.get("checked_too").set(thing_classes=[f"c{i}" for i in range(80)])
    DatasetCatalog.register("checked_too", list)
    try:
        several = ("DATASETS.TEST", ("checked_set", "checked_too"))
        check_config(make_cfg(*several, "TEST.BEST_CHECKPOINT.METRIC", "checked_too/bbox/AP"))
        (line,) = problems(*several, "TEST.BEST_CHECKPOINT.METRIC", "bbox/AP")
    finally:
        DatasetCatalog.remove("checked_too")
        MetadataCatalog.remove("checked_too")
    assert "There are: checked_set/bbox/AP" in line
