"""Draws the test images of a run with ground truth and detections."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from retina_plugin.config import read_config
from retina_plugin.data.dataset_checks import check_datasets
from retina_plugin.evaluation import inference_folder
from retina_plugin.tools.visualize.grid import draw_grid


def visualize_run(
    output_dir: str | Path,
    *,
    num_images: int = 12,
    score_threshold: float = 0.5,
    imports: Iterable[str] = (),
    allow_unsafe_yaml: bool = False,
    opts: Sequence[Any] = (),
) -> list[Path]:
    """Draw a grid of test images for each test set of a run, from the detections of its last evaluation.

    Args:
        output_dir: ``OUTPUT_DIR`` of a training or evaluation, with ``config.yaml`` and ``inference``.
        num_images, score_threshold: see :func:`draw_grid`, and for its errors.
        imports, opts: modules as of ``--import`` and overrides, beyond ``config.yaml``.
        allow_unsafe_yaml: run code that ``config.yaml`` names.

    Returns:
        The PNG files, ``contact_sheet.png`` beside the detections.

    Raises:
        ConfigError: the configuration or a data set cannot be used.
    """
    if num_images < 1:
        raise ValueError(f"--num-images is {num_images}: show at least one image")
    cfg = read_config(str(Path(output_dir) / "config.yaml"), opts, imports, allow_unsafe=allow_unsafe_yaml)
    check_datasets(cfg.DATASETS.TEST)
    cfg.OUTPUT_DIR = str(output_dir)  # the folder may have moved since
    sheets = []
    for name in cfg.DATASETS.TEST:
        folder = Path(inference_folder(cfg, name))
        detections, sheet = folder / "coco_instances_results.json", folder / "contact_sheet.png"
        sheets.append(draw_grid(name, detections, sheet, num_images=num_images, score_threshold=score_threshold))
    return sheets
