"""Draws the test images of a run with ground truth and detections."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin.checkpoint.reader import read_checkpoint
from retina_plugin.config import read_config
from retina_plugin.config.coco_files import add_coco_file, register_coco_files
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.dataset_checks import check_datasets
from retina_plugin.evaluation import inference_folder
from retina_plugin.tools.visualize.grid import draw_grid

_NAME = "json_test"  # of a COCO file that is given


def visualize_run(
    output_dir: str | Path,
    *,
    json_file: str | Path | None = None,
    image_root: str | Path | None = None,
    num_images: int = 12,
    score_threshold: float = 0.5,
    imports: Iterable[str] = (),
    allow_unsafe_yaml: bool = False,
    opts: Sequence[Any] = (),
) -> list[Path]:
    """Draw a grid of test images for each test set of a run, from the detections of its last evaluation.

    Args:
        output_dir: ``OUTPUT_DIR`` of a training or evaluation, with ``config.yaml`` and ``inference``.
        json_file, image_root: the test set as a COCO file and a folder of images, if it is not registered by name.
        num_images, score_threshold: see :func:`draw_grid`, and for its errors.
        imports, opts: modules as of ``--import`` and overrides, beyond ``config.yaml``.
        allow_unsafe_yaml: run code that ``config.yaml`` names.

    Returns:
        The PNG files, ``contact_sheet.png`` beside the detections.

    Raises:
        ConfigError: the configuration or a data set cannot be used.
        CheckpointError: a data set has no class names, and the run's weights cannot be read.
    """
    if num_images < 1:
        raise ValueError(f"--num-images is {num_images}: show at least one image")
    cfg = read_config(str(Path(output_dir) / "config.yaml"), opts, imports, allow_unsafe=allow_unsafe_yaml)
    register_coco_files(cfg)
    if json_file is not None and image_root is not None:
        add_coco_file(cfg, _NAME, json_file, image_root)
        cfg.DATASETS.TEST = (_NAME,)
    elif json_file is not None or image_root is not None:
        raise ConfigError(["--json FILE and --images DIR go together: the COCO file, and the folder of its images"])
    check_datasets(cfg.DATASETS.TEST)
    cfg.OUTPUT_DIR = str(output_dir)  # the folder may have moved since
    sheets = []
    for name in cfg.DATASETS.TEST:
        folder = Path(inference_folder(cfg, name))
        detections, sheet = folder / "coco_instances_results.json", folder / "contact_sheet.png"
        DatasetCatalog.get(name)  # may name its classes only now
        names = MetadataCatalog.get(name).get("thing_classes") or _class_names_of_model(cfg)
        draw = partial(draw_grid, num_images=num_images, score_threshold=score_threshold, class_names=names)
        sheets.append(draw(name, detections, sheet))
    return sheets


def _class_names_of_model(cfg: CfgNode) -> list[str]:
    """The class names in the run's last checkpoint or in its weights, or else labels."""
    last = Path(cfg.OUTPUT_DIR, "last_checkpoint")
    path = str(last.with_name(last.read_text().strip())) if last.is_file() else cfg.MODEL.WEIGHTS
    checkpoint = read_checkpoint(path, allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE) if path else {}
    return checkpoint.get("class_names") or [str(label) for label in range(cfg.MODEL.RETINANET.NUM_CLASSES)]
