"""The line that a training prints."""

from detectron2.utils.events import CommonMetricPrinter, get_event_storage

_POSITIVES = "num_pos_anchors_"  # what FocalRetinaNet puts for each level


class ProgressPrinter(CommonMetricPrinter):
    """Prints what Detectron2's printer does, and epochs, images a second and how many anchors of a level learn boxes.

    Losses are medians of the last 20 iterations, as there.
    """

    def write(self):
        storage = get_event_storage()
        histories = storage.histories()
        _, of_loss = storage.latest().get("total_loss", (None, None))
        if of_loss != storage.iter:  # writers also run after the last step
            return
        self.logger.info("  ".join([*self._when(storage), *_losses(histories, self._window_size), *_rest(histories)]))

    def _when(self, storage):
        eta = self._get_eta(storage)
        if eta:
            yield f" eta: {eta}"
        yield f"iter: {storage.iter}"
        if "epoch" in storage.histories():
            yield f"epoch: {storage.history('epoch').latest():.2f}"


def _losses(histories, window):
    # Those of an evaluation have a "/", and a line of their own.
    for name, history in list(histories.items()):
        if "loss" in name and "/" not in name:
            yield f"{name}: {history.median(window):.4g}"


def _rest(histories):
    def latest(name, text, scale=1):
        if name in histories:
            yield text.format(histories[name].latest() * scale)

    if "time" in histories:
        yield f"time: {histories['time'].global_avg():.4f}"
    if "data_time" in histories:
        yield f"data_time: {histories['data_time'].avg(20):.4f}"
    yield from latest("images_per_second", "images/s: {:.4g}")
    yield f"lr: {histories['lr'].latest():.5g}" if "lr" in histories else "lr: N/A"
    levels = [name for name in histories if name.startswith(_POSITIVES)]
    if levels:
        counts = (f"{name.removeprefix(_POSITIVES)} {histories[name].latest():.3g}" for name in levels)
        yield f"positives: {', '.join(counts)}"
    yield from latest("images_without_boxes", "without boxes: {:.0f}%", 100)
    yield from latest("max_mem_mb", "max_mem: {:.0f}M")
