"""Detects objects in images and videos, in one process or several, and writes what was found."""

import argparse
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from tqdm import tqdm

from retina_plugin.config.coco_files import use_coco_file
from retina_plugin.core.comm import any_rank
from retina_plugin.core.errors import ConfigError, ImageError
from retina_plugin.core.files import atomic_write_text
from retina_plugin.core.text import one_line
from retina_plugin.engine.arguments import processes_of
from retina_plugin.engine.launch import launch
from retina_plugin.engine.signals import EXIT_INTERRUPTED, catch_signals, signal_received
from retina_plugin.runtime.backend import ModelSource
from retina_plugin.runtime.inputs import Input, Source, find_sources
from retina_plugin.runtime.predictor import Predictor
from retina_plugin.runtime.thresholds import ScoreThreshold, lowest_threshold
from retina_plugin.runtime.torch_backend import read_model_config
from retina_plugin.tools.predict.data_set import categories_of, sources_of
from retina_plugin.tools.predict.labels import SUFFIXES
from retina_plugin.tools.predict.names import annotated_names, label_names
from retina_plugin.tools.predict.output import CLASSES, SUMMARY, prepare_output
from retina_plugin.tools.predict.results import write_results
from retina_plugin.tools.predict.saving import Saver
from retina_plugin.tools.predict.spool import as_record, read_records, spool_path

FORMATS = ("coco", *SUFFIXES)
_DRAW_FROM = 0.5  # of a detector's 100 objects an image, most have scores close to 0
_SHOWN = 10  # unreadable inputs in the terminal


@dataclass(frozen=True)
class Job:
    """What every process of a prediction is told; see :func:`predict`."""

    folder: Path
    sources: list[Source]
    annotated: list[str] | None
    labels: dict[str, list[str]]
    data_set: str | None = None
    score_threshold: ScoreThreshold = None
    batch_size: int = 1
    num_workers: int | None = None
    save_streams: bool = False
    draw_from: float = 0.0
    formats: Sequence[str] = ()


def predict(
    model: ModelSource,
    inputs: Input | Iterable[Input],
    output_dir: str | os.PathLike,
    *,
    dataset: str | None = None,
    json_file: str | os.PathLike | None = None,
    image_root: str | os.PathLike | None = None,
    recursive: bool = False,
    score_threshold: ScoreThreshold = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    formats: Sequence[str] = (),
    draw: bool = True,
    save_video: bool = False,
    overwrite: bool = False,
    num_gpus: int | None = None,
) -> int:
    """Detect the objects of all inputs and write the results into a folder.

    Args:
        model: the detector.
        inputs: see :func:`~retina_plugin.runtime.inputs.find_sources`; empty with a data set.
        output_dir: gets ``predictions.json`` (COCO results), ``predictions.csv``, ``images.json`` (ids and sizes of the
            images, as a COCO file), ``annotated/``, ``labels/`` or ``labels.json``, and last ``summary.json``.
        dataset, json_file, image_root: a registered data set, or a COCO file and the folder of its images, whose images
            are the inputs and whose ids are those of the results.
        recursive: look into the folders of folders as well.
        score_threshold, batch_size, num_workers: see :class:`~retina_plugin.Predictor`.
        formats: of pseudo-labels to write: ``coco``, ``voc``, ``yolo``.
        draw: write annotated images and videos, with all objects or, without ``score_threshold``, those with a score of
            0.5 or more.
        save_video: write annotated videos of cameras and streams as well.
        overwrite: move results that are in ``output_dir`` into ``previous_run_N``.
        num_gpus: processes on this machine; None for one, or for those that torchrun started.

    Returns:
        0; 1 if inputs could not be read; 75 if a signal ended the run, with the results so far.

    Raises:
        UserError: the model, an input as such, or the folder cannot be used.
    """
    lowest_threshold(score_threshold)  # its errors before anything is loaded
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError([f"--format is {', '.join(FORMATS)}, or several of them with commas, not {unknown[0]}"])
    cfg = read_model_config(model)
    name = use_coco_file(cfg, json_file, image_root) or dataset
    inputs = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)  # type: ignore[arg-type]
    if bool(inputs) == bool(name):
        raise ConfigError(["inputs are images, folders or videos, or else one data set: give one of both"])
    sources = sources_of(name) if name else find_sources(inputs, recursive=recursive)
    if not sources:
        raise ConfigError(["the inputs name no images"])
    folder = Path(output_dir)
    job = Job(
        folder=folder,
        sources=sources,
        annotated=annotated_names(sources) if draw else None,
        labels={f: label_names(sources, SUFFIXES[f]) for f in formats if f in SUFFIXES},
        data_set=name,
        score_threshold=score_threshold,
        batch_size=batch_size,
        num_workers=num_workers,
        save_streams=save_video,
        draw_from=_DRAW_FROM if score_threshold is None else 0.0,
        formats=formats,
    )
    if "coco" in formats:
        label_names(sources, "")  # refuses videos
    args = argparse.Namespace(num_gpus=num_gpus, num_machines=1, machine_rank=0, dist_url="auto")
    is_first = processes_of(args).rank == 0  # or this process starts it
    if is_first:
        prepare_output(folder, sources, overwrite)
    launch(partial(_run_rank, job), cfg, args)
    return _report(folder, job) if is_first else 0


def _run_rank(job: Job, cfg: CfgNode, args: argparse.Namespace) -> None:
    rank, size = comm.get_rank(), comm.get_world_size()
    options: dict[str, Any] = {"batch_size": job.batch_size, "num_workers": job.num_workers}
    predictor = Predictor(cfg, score_threshold=job.score_threshold, **options)
    categories = categories_of(cfg, job.data_set, predictor.class_names)
    comm.synchronize()  # the first process has made room in the folder
    start = time.monotonic()
    with catch_signals("stopping with the results so far"):
        detect_share(job, predictor, rank, size)
        is_interrupted = any_rank(signal_received())  # waits for all processes
    if rank != 0:
        return
    seconds = time.monotonic() - start
    spools = [spool_path(job.folder, r) for r in range(size)]
    write_results(job.folder, partial(read_records, spools), categories, "coco" in job.formats)
    if "yolo" in job.formats:
        atomic_write_text(job.folder / CLASSES, "".join(f"{one_line(c.name)}\n" for c in categories))
    summary = {
        "complete": not is_interrupted,
        "model": predictor.backend.description,
        **_thresholds(job.score_threshold, predictor.backend.score_threshold),
        "batch_size": job.batch_size,
        "processes": size,
        "seconds": round(seconds, 3),
        **_counts(read_records(spools), predictor.class_names),
        "categories": [category._asdict() for category in categories],
    }
    atomic_write_text(job.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    for spool in spools:
        spool.unlink()


def detect_share(job: Job, predictor: Predictor, rank: int = 0, size: int = 1) -> None:
    """Detect the objects of this process's share of the sources, and save what belongs to single images."""
    saver = Saver(job.folder, job.sources, job.annotated, job.labels, job.save_streams, job.draw_from)
    waiting: deque[Future[Any]] = deque()
    sources = job.sources[rank::size]
    total = len(sources) if all(source.kind == "image" for source in sources) else None
    progress = tqdm(total=total, unit="image", disable=None if rank == 0 else True)
    found = predictor.stream_sources(sources, keep_images=job.annotated is not None)
    with (
        saver,
        progress,
        ThreadPoolExecutor(min(predictor.num_workers, 4), "save") as pool,
        open(spool_path(job.folder, rank), "w", encoding="utf-8") as spool,
    ):
        for share, result in found:
            number = rank + share * size
            spool.write(json.dumps(as_record(number, result)) + "\n")
            if not isinstance(result, ImageError):
                waiting.append(pool.submit(saver.save, number, result))
            if len(waiting) > 2 * predictor.num_workers:  # a bound of the memory
                saver.finish(waiting.popleft().result())
            progress.update()
            if signal_received():
                break
        while waiting:
            saver.finish(waiting.popleft().result())


def _counts(records: Iterable[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    images, by_class, unreadable = 0, Counter[int](), []
    for record in records:
        if "problem" in record:
            unreadable.append({"path": record["name"], "reason": record["problem"]})
        else:
            images += 1
            by_class.update(record["class_ids"])
    return {
        "images": images,
        "detections": by_class.total(),
        "detections_by_class": {name: by_class[label] for label, name in enumerate(class_names)},
        "unreadable": unreadable,
    }


def _thresholds(threshold: ScoreThreshold, default: float) -> dict[str, Any]:
    by_name = dict(threshold) if isinstance(threshold, Mapping) else {None: threshold}
    others = by_name.pop(None, None)
    return {"score_threshold": default if others is None else others, "score_thresholds_by_class": by_name}


def _report(folder: Path, job: Job) -> int:
    """Print what was done, and return the exit status."""
    summary = json.loads((folder / SUMMARY).read_text())
    unreadable, images, seconds = summary["unreadable"], summary["images"], summary["seconds"]
    for item in unreadable[:_SHOWN]:
        tqdm.write(f"warning: {one_line(item['path'])} cannot be read: {one_line(item['reason'])}")
    if len(unreadable) > _SHOWN:
        print(f"warning: {len(unreadable) - _SHOWN} more cannot be read: see unreadable in {folder / SUMMARY}")
    end = "" if summary["complete"] else "Stopped by a signal. "
    speed = f"{images / seconds:.3g} images/s on {summary['model']['device']}" if seconds else ""
    print(f"{end}{images} images, {summary['detections']} detections in {seconds:.1f} s ({speed}): {folder.resolve()}")
    if job.annotated is not None and job.draw_from:
        print(f"annotated/ shows scores of {job.draw_from} or more; --score-threshold sets one limit for all files")
    if not summary["complete"]:
        return EXIT_INTERRUPTED
    return 1 if unreadable else 0
