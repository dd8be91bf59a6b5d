"""Writes a starting configuration for a data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from retina_plugin.config import flatten, merge_config
from retina_plugin.config.checks import check_model_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import atomic_write_text, require_new_file
from retina_plugin.core.text import list_some
from retina_plugin.data.class_names import class_difference_problems
from retina_plugin.data.dataset_checks import data_problems
from retina_plugin.data.training_boxes import size_of
from retina_plugin.engine.data_arguments import DEFAULT_CONFIG
from retina_plugin.model_zoo import get_config_file
from retina_plugin.tools.anchors.fit import fit_anchors
from retina_plugin.tools.anchors.training_set import class_names_of, read_training_images
from retina_plugin.tools.suggest import rules
from retina_plugin.tools.suggest.commented_yaml import Suggestion, as_yaml

_ANCHOR_KEYS = {"MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"}
_TEST_NAMES = ("val", "test", "valid", "validation")


def suggest(
    cfg: CfgNode,
    config_file: str = "",
    *,
    opts: Sequence[Any] = (),
    output_file: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> str:
    """Suggest a configuration for a training on ``DATASETS.TRAIN``, print it or write it to a file, and return it.

    Args:
        cfg: of :func:`~retina_plugin.tools.anchors.training_set.read_training_config`, without overrides; is not
            changed.
        config_file: the file that ``cfg`` was read from, which becomes the ``_BASE_``; by default the default there.
        opts: overrides, ``["KEY", "VALUE", ...]``: they are kept, and other values follow from them.
        output_file: gets the YAML.
        overwrite: whether it may replace a file.
        seed: of the fit of the anchors.

    Raises:
        ConfigError: the data set cannot be used, or has no boxes.
        FileError: the file to write exists.
    """
    if output_file is not None:
        require_new_file(output_file, overwrite=overwrite, inputs=[config_file])
    base = config_file or get_config_file(DEFAULT_CONFIG)
    suggestions, about = _suggestions(cfg, opts, seed)
    command = f"Train: python train_net.py --config-file {output_file or 'THIS FILE'}"
    text = as_yaml(suggestions, [about, command], base)
    if output_file is None:
        print(text, end="")
    else:
        atomic_write_text(output_file, text)
    return text


def _suggestions(base: CfgNode, opts: Sequence[Any], seed: int) -> tuple[list[Suggestion], str]:
    """The suggestions, and a sentence about the data set."""
    cfg, given = base.clone(), set(opts[::2])
    cfg.defrost()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    images = read_training_images(cfg)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = base.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    merge_config(cfg, opts=opts)
    check_model_config(cfg)
    names = class_names_of(cfg)
    suggestions: list[Suggestion] = []
    counts = [len(_objects_of(image)) for image in images]
    if not any(counts):
        raise ConfigError([f"none of {len(images)} images of {', '.join(cfg.DATASETS.TRAIN)} has a box to train on"])

    def put(part: Iterator[Suggestion]) -> None:
        for key, value, reason in part:
            if key in given:
                value, reason = dict(flatten(cfg))[key], "As given."
            else:
                cfg.merge_from_list([key, value])
            suggestions.append(Suggestion(key, value, reason))

    put(_data(cfg, images, counts, names))
    put(_sizes(cfg, images))
    train_images = read_training_images(cfg)  # without those that are dropped
    if not given & _ANCHOR_KEYS:
        put(_anchors(cfg, train_images, seed))
    put(_schedule(cfg, base, len(train_images)))
    put(_evaluation(cfg, max(counts)))
    values, done = dict(flatten(cfg)), {suggestion.key for suggestion in suggestions}
    suggestions += [Suggestion(key, values[key], "As given.") for key in sorted(given - done) if key in values]
    about = (
        f"A starting configuration for {list_some(cfg.DATASETS.TRAIN, 3)}: {len(images)} images with {sum(counts)} "
        "boxes. By `retina-plugin suggest`: rules of thumb, nothing was trained."
    )
    return suggestions, about


def _data(
    cfg: CfgNode, images: Sequence[dict[str, Any]], counts: Sequence[int], names: Sequence[str]
) -> Iterator[Suggestion]:
    if cfg.IMPORTS:
        yield Suggestion("IMPORTS", list(cfg.IMPORTS), "Modules of --import, which register parts or data sets.")
    if cfg.DATASETS.COCO_FILES:
        files = [list(entry) for entry in cfg.DATASETS.COCO_FILES]
        yield Suggestion("DATASETS.COCO_FILES", files, "Data sets to register: name, COCO file, folder of its images.")
    yield Suggestion("DATASETS.TRAIN", list(cfg.DATASETS.TRAIN), f"{len(images)} images.")
    test = _test_sets(cfg.DATASETS.TRAIN)
    found = "The registered set that goes with it." if test else "None is known: name one, else there is no AP."
    yield Suggestion("DATASETS.TEST", test, found)
    classes = f"Classes of the data: {list_some(names, 5)}."
    yield Suggestion("MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES, classes)
    empty = sum(count == 0 for count in counts)
    drops = empty > len(images) / 2
    if not empty:
        reason = "No image is without boxes."
    elif drops:
        reason = f"{empty} of {len(images)} images have no box: more than half of the steps would see background alone."
    else:
        reason = f"{empty} of {len(images)} images have no box: they teach what is background."
    yield Suggestion("DATALOADER.FILTER_EMPTY_ANNOTATIONS", drops or not empty, reason)


def _sizes(cfg: CfgNode, images: Sequence[dict[str, Any]]) -> Iterator[Suggestion]:
    objects, images_short = _measure(images, cfg.INPUT.FORMAT)
    share = f"A tenth of the objects is smaller than {objects.small:.1%} of the image's short side"
    tiles = rules.tiles(objects, images_short)
    if tiles:
        why = f"{share}: in a whole image of {tiles.edge} px they would vanish."
        for node in ("INPUT", "TEST"):
            yield Suggestion(f"{node}.TILE.SIZE", tiles.size, why)
            yield Suggestion(f"{node}.TILE.OVERLAP", tiles.overlap, "19 of 20 objects are whole in some tile.")
        edge, train = tiles.edge, [tiles.edge]
        why = f"A tile of {tiles.size} px is enlarged {tiles.edge / tiles.size:.2g} times."
    else:
        edge = rules.short_edge(objects, images_short)
        train = rules.train_edges(edge)
        why = f"{share}: {objects.small * edge:.0f} px at {edge}. A cell of P3, the finest level, has 8."
    longest = f"{rules.max_size(edge)} is to {edge} as Detectron2's 1333 to 800."
    yield Suggestion("INPUT.MIN_SIZE_TRAIN", train, why)
    yield Suggestion("INPUT.MAX_SIZE_TRAIN", rules.max_size(edge), longest)
    yield Suggestion("INPUT.MIN_SIZE_TEST", edge, "As the largest in training.")
    yield Suggestion("INPUT.MAX_SIZE_TEST", rules.max_size(edge), "As in training.")


def _anchors(cfg: CfgNode, images: Sequence[dict[str, Any]], seed: int) -> Iterator[Suggestion]:
    fitted = fit_anchors(cfg, images, seed=seed)
    threshold = max(cfg.MODEL.RETINANET.IOU_THRESHOLDS)
    on = f"{fitted.test_boxes} boxes of " + ("held-out images" if fitted.test_images else "the same images")
    before, after = fitted.before.reached[-1], fitted.after.reached[-1]
    if fitted.is_better:
        reason = f"Fitted: {after:.1%} of {on} have an IoU >= {threshold:g}; {before:.1%} with those of the base."
        sizes, ratios = fitted.sizes, [fitted.ratios]
    else:
        reason = f"Those of the base, which fit: {before:.1%} of {on} have an IoU >= {threshold:g}."
        sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    yield Suggestion("MODEL.ANCHOR_GENERATOR.SIZES", sizes, reason)
    yield Suggestion("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ratios, "Height / width, fitted with the sizes.")


def _schedule(cfg: CfgNode, base: CfgNode, num_images: int) -> Iterator[Suggestion]:
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    pixels = max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN
    batch = rules.batch_size(base.SOLVER.IMS_PER_BATCH, num_images, pixels, gib)
    few = "There is no GPU here: a few, so that a step takes seconds. For a trial, shorten SOLVER.MAX_ITER, too."
    why = few if gib is None else f"Fits a GPU of {gib:.0f} GiB."
    yield Suggestion("SOLVER.IMS_PER_BATCH", batch, why)
    batch = cfg.SOLVER.IMS_PER_BATCH
    why = "The values below are for this batch; with another SOLVER.IMS_PER_BATCH they are scaled."
    yield Suggestion("SOLVER.REFERENCE_BATCH_SIZE", batch, why)
    rate, of = base.SOLVER.BASE_LR, base.SOLVER.IMS_PER_BATCH
    why = f"The base's {rate:g} for {of} images, by the linear rule (Goyal et al. 2017)."
    yield Suggestion("SOLVER.BASE_LR", float(f"{rate * batch / of:.3g}"), why)
    unit = "tiles" if cfg.INPUT.TILE.SIZE else "images"
    why = (
        f"{rules.epochs(num_images):.0f} epochs of {num_images} {unit}: 12 as for COCO, times the square root of how "
        f"many times fewer {unit} there are, at most 100."
    )
    yield Suggestion("SOLVER.MAX_ITER", rules.iterations(num_images, batch), why)
    length = cfg.SOLVER.MAX_ITER
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = sorted({length * 2 // 3, length * 8 // 9} - {0, length})
        yield Suggestion("SOLVER.STEPS", steps, "The rate falls at 2/3 and 8/9 of the training, as in the paper.")
    warmup = min(base.SOLVER.WARMUP_ITERS, length // 20)
    yield Suggestion("SOLVER.WARMUP_ITERS", warmup, "A twentieth of the training, at most the base's.")
    yield Suggestion("SOLVER.CHECKPOINT_PERIOD", max(1, length // 10), "Ten checkpoints.")


def _evaluation(cfg: CfgNode, densest: int) -> Iterator[Suggestion]:
    period = max(1, cfg.SOLVER.MAX_ITER // 10) if cfg.DATASETS.TEST else 0
    yield Suggestion("TEST.EVAL_PERIOD", period, "With each checkpoint." if period else "There is no test set.")
    number = rules.detections_per_image(densest)
    reason = f"The densest image has {densest} objects; half as many again for false detections, at least 100."
    yield Suggestion("TEST.DETECTIONS_PER_IMAGE", number, reason)
    if number > cfg.TEST.AP_DETECTIONS_PER_IMAGE:
        yield Suggestion("TEST.AP_DETECTIONS_PER_IMAGE", number, "AP counts 100 detections an image by default.")
    yield Suggestion("OUTPUT_DIR", f"./output/{Path(cfg.DATASETS.TRAIN[0]).name}", "Checkpoints and logs.")


def _objects_of(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in image.get("annotations", ()) if a.get("iscrowd", 0) == 0]


def _measure(images: Sequence[dict[str, Any]], image_format: str) -> tuple[rules.Objects, float]:
    """Objects with an area, and the median of the images' short sides, in pixels."""
    rows, short_edges = [], [min(size_of(image, image_format)) for image in images]
    for image, short_edge in zip(images, short_edges):
        for annotation in _objects_of(image):
            *_, width, height = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            if width > 0 and height > 0:
                rows.append((np.sqrt(width * height), max(width, height), short_edge))
    columns = np.array(rows, dtype=float).reshape(-1, 3).T
    return rules.Objects(*columns), float(np.median(short_edges))


def _test_sets(train: Sequence[str]) -> list[str]:
    """Registered sets that are named as the training sets, with "val" or "test" in place of "train"."""
    for word in _TEST_NAMES:
        names = [name.replace("train", word) for name in train if "train" in name]
        known = [name for name in names if name in DatasetCatalog and name not in train]
        if known and not [*data_problems(known), *class_difference_problems([*train, *known])]:
            return known
    return []
