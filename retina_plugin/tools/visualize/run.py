"""Draws the test images of a run with ground truth and detections."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin.checkpoint.reader import read_checkpoint
from retina_plugin.checkpoint.run_folder import class_names_of_model, read_run_config, weights_of_run
from retina_plugin.config.coco_files import use_coco_file
from retina_plugin.data.dataset_checks import check_datasets
from retina_plugin.evaluation import inference_folder
from retina_plugin.tools.visualize.grid import draw_grid


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
    cfg = read_run_config(output_dir, opts, imports, allow_unsafe=allow_unsafe_yaml)
    use_coco_file(cfg, json_file, image_root)
    check_datasets(cfg.DATASETS.TEST)
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
    path = weights_of_run(cfg)
    checkpoint = read_checkpoint(path, allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE) if path else {}
    return class_names_of_model(cfg, checkpoint)
