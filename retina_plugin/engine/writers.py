"""Writers of metrics: the line that training prints, and ``metrics.json``, which a resumed run continues."""

import datetime
import json
import logging
import os
from collections.abc import Iterator
from typing import IO

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from detectron2.utils.file_io import PathManager

from retina_plugin.core.files import atomic_write

WINDOW = 20  # iterations that Detectron2's writers take the median of
_POSITIVES = "num_pos_anchors_"  # what TrainingStep logs for each level


class MetricsWriter(EventWriter):
    """Writes what Detectron2's ``JSONWriter`` writes, and continues the file of a run that is resumed."""

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        self._file: IO[str] | None = None
        self._last_written = -1

    def truncate(self, first_iteration: int) -> None:
        """Remove the lines from an iteration on, and a line that was cut off. Call this before the first write."""
        if not PathManager.exists(self._path):
            return
        with PathManager.open(self._path, "rb") as file:  # what a crash leaves may not be text
            before = file.read()
        lines = [(line, _iteration(line)) for line in before.split(b"\n")]
        kept = [(line, at) for line, at in lines if at is not None and at < first_iteration]
        after = b"".join(line + b"\n" for line, _ in kept)
        if after != before:
            atomic_write(self._path, lambda file: file.write(after))
        self._last_written = max((at for _, at in kept), default=-1)

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last_written:
                lines.setdefault(iteration, {"iteration": iteration})[name] = value
        if lines:
            self._last_written = max(lines)
            try:
                self._file = self._file or PathManager.open(self._path, "a")
                self._file.writelines(json.dumps(line, sort_keys=True) + "\n" for line in lines.values())
                self._file.flush()
            except OSError as error:
                error.filename = error.filename or self._path  # a failed write does not know its file
                raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's hook, which truncates the files of :class:`MetricsWriter` when a run is resumed."""

    def __init__(self, writers: list[EventWriter], period: int):
        super().__init__(writers, period)
        self._metrics_writers = [writer for writer in writers if isinstance(writer, MetricsWriter)]

    def before_train(self) -> None:
        if self.trainer.is_resumed:
            for writer in self._metrics_writers:
                writer.truncate(self.trainer.start_iter - 1)  # the hooks of this iteration run again


class ProgressPrinter(EventWriter):
    """Prints what Detectron2's ``CommonMetricPrinter`` does, and epochs, images per second and positives by level."""

    def __init__(self, max_iter: int):
        self._max_iter = max_iter
        self._logger = logging.getLogger("detectron2.utils.events")

    def write(self) -> None:
        storage = get_event_storage()
        _, iteration = storage.latest().get("total_loss", (None, None))
        if iteration == storage.iter:  # writers also run after the last step
            self._logger.info(" " + "  ".join(self._parts(storage)))

    def _parts(self, storage: EventStorage) -> Iterator[str]:
        histories = dict(storage.histories())

        def latest(name: str, text: str, scale: float = 1) -> Iterator[str]:
            if name in histories:
                yield text.format(histories[name].latest() * scale)

        if "time" in histories:
            seconds = histories["time"].median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            yield f"eta: {datetime.timedelta(seconds=int(seconds))}"
        yield f"iter: {storage.iter}"
        yield from latest("epoch", "epoch: {:.2f}")
        # An evaluation has a "/" in its names, and a line of its own.
        losses = [name for name in histories if "loss" in name and "/" not in name]
        metrics = [
            name for name in histories if "[metric]" in name and name not in losses
        ]  # a word of Detectron2's main
        for name in losses + metrics:
            yield f"{name}: {histories[name].median(WINDOW):.4g}"
        if "time" in histories:
            yield f"time: {histories['time'].global_avg():.4f}"
        if "data_time" in histories:
            yield f"data_time: {histories['data_time'].avg(WINDOW):.4f}"
        yield from latest("images_per_second", "images/s: {:.4g}")
        yield from latest("lr", "lr: {:.5g}")
        levels = [name for name in histories if name.startswith(_POSITIVES)]
        if levels:
            counts = (f"{name.removeprefix(_POSITIVES)} {histories[name].latest():.3g}" for name in levels)
            yield f"positives: {', '.join(counts)}"
        yield from latest("images_without_boxes", "without boxes: {:.0f}%", 100)
        yield from latest("max_mem_mb", "max_mem: {:.0f}M")


def _iteration(line: bytes) -> int | None:
    try:
        iteration = json.loads(line)["iteration"]
    except (ValueError, LookupError, TypeError, RecursionError):  # cut off when the run was killed, or damaged
        return None
    return iteration if isinstance(iteration, int) else None
