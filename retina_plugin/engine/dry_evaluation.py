"""Evaluates a few images before a job, so that what fails there does not fail after the training, or all images."""

import contextlib
import io
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from retina_plugin.core.errors import ConfigError, UserError
from retina_plugin.core.plain import as_python
from retina_plugin.core.rng import preserve_random_state
from retina_plugin.core.text import describe_error, list_some
from retina_plugin.data.loading import explain_loading
from retina_plugin.engine.overrides import overrides
from retina_plugin.evaluation import BoxEvaluator

Record = dict[str, Any]

_KNOWN = (BoxEvaluator, COCOEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator)
_MAX_FILES = 20_000  # looked for, which takes well below a second


def dry_evaluate(cfg: CfgNode, trainer: type[DefaultTrainer], stock: type[DefaultTrainer]) -> None:
    """Build the evaluator of each test set, and evaluate made-up detections in three of its images.

    All ranks call this. Files go to a temporary folder, and random states stay as they are. What a project's trainer
    builds by methods of its own is built, but not run: it may need all images, or other detections.

    Args:
        cfg: the configuration of a training or an evaluation.
        trainer: the class that trains or evaluates.
        stock: the class whose methods are known.

    Raises:
        ConfigError: a test set cannot be loaded, read or evaluated.
    """
    own = {name: overrides(trainer, name, stock) for name in ("test", "build_test_loader", "build_evaluator")}
    if own["test"]:
        return
    with preserve_random_state(include_gpu=True), _quiet(), tempfile.TemporaryDirectory() as folder:
        for name in cfg.DATASETS.TEST:
            with explain_loading("DATASETS.TEST", [name]):
                records = DatasetCatalog.get(name)
                assert not isinstance(records, list) or records  # which explains itself
            if own["build_evaluator"]:
                with _explained(name), _without_file_in(folder, name):
                    trainer.build_evaluator(_dry(cfg, folder, name), name)
            elif isinstance(records, list):
                _check_ids(name, records)
                if not own["build_test_loader"]:
                    _check_files(name, records)
                _evaluate_some(_dry(cfg, folder, name), trainer, name, records, own["build_test_loader"])


def _dry(cfg: CfgNode, folder: str, name: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = folder, (name,), 0
    return cfg


def _check_ids(name: str, records: Sequence[Record]) -> None:
    has = f"data set '{name}' of DATASETS.TEST has"
    image_ids = [as_python(record.get("image_id")) for record in records]  # the evaluator converts them, too
    for index, image_id in enumerate(image_ids):
        if not isinstance(image_id, (int, float, str)):
            what = "no image_id" if image_id is None else f"an image_id of type {type(image_id).__name__}"
            raise ConfigError([
                f"{has} {what} in dict {index} of {len(records)}: the evaluation tells images by it, and writes it to "
                "JSON. Give each image another integer or string"
            ])  # fmt: skip
    (image_id, count), *_ = Counter(image_ids).most_common(1)
    if count > 1:
        raise ConfigError([f"{has} {count} images with image_id {image_id}: give each image its own"])


def _check_files(name: str, records: Sequence[Record]) -> None:
    files = [str(record.get("file_name", "")) for record in records[:_MAX_FILES]]
    missing = [file for file in files if "://" not in file and not os.path.isfile(file)]
    if missing:
        raise ConfigError([
            f"data set '{name}' of DATASETS.TEST lacks {len(missing)} of {len(files)} image files, so that no "
            f"evaluation of it would end: {list_some(missing, 3)}"
        ])  # fmt: skip


def _evaluate_some(
    cfg: CfgNode, trainer: type[DefaultTrainer], name: str, records: Sequence[Record], own_loader: bool
) -> None:
    some = [records[i] for i in sorted({0, len(records) // 2, len(records) - 1})]
    with _explained(name), _registered(f"{name}__dry_evaluation", some, name) as some_name:
        images = (
            some if own_loader else [image for batch in trainer.build_test_loader(cfg, some_name) for image in batch]
        )
        evaluator = trainer.build_evaluator(cfg, some_name)
        if type(evaluator) not in _KNOWN:
            return
        evaluator.reset()
        for image in images:
            evaluator.process([image], [{"instances": _made_up(image)}])
        _evaluate(evaluator, [as_python(record["image_id"]) for record in some])


def _evaluate(evaluator: DatasetEvaluator, image_ids: Sequence[Any]) -> None:
    if isinstance(evaluator, COCOEvaluator):
        evaluator.evaluate(img_ids=list(image_ids))
    elif not isinstance(evaluator, LVISEvaluator):  # which takes minutes, however few detections there are
        evaluator.evaluate()


def _made_up(image: Record) -> Instances:
    height, width = image.get("height", 2), image.get("width", 2)
    detection = Instances((height, width))
    detection.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, width / 2, height / 2]]))
    detection.scores, detection.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    return detection


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ConfigError([
            f"data set '{name}' of DATASETS.TEST cannot be evaluated, which would end the job after all else: "
            f"{describe_error(error)}"
        ]) from error  # fmt: skip


@contextlib.contextmanager
def _registered(name: str, records: list[Record], like: str) -> Iterator[str]:
    """A data set of some images, with the metadata of a whole one."""
    metadata = {key: value for key, value in MetadataCatalog.get(like).as_dict().items() if key != "name"}
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**metadata)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@contextlib.contextmanager
def _without_file_in(folder: str, name: str) -> Iterator[None]:
    """Forget the file that ``COCOEvaluator`` converted a data set to, if it lies in the folder."""
    try:
        yield
    finally:
        metadata = MetadataCatalog.get(name)
        if str(metadata.get("json_file", "")).startswith(folder):
            del metadata.json_file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what pycocotools prints and Detectron2 logs about loading and results, but no warning."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
