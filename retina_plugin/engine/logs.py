"""Logs of a job: all of it in ``OUTPUT_DIR/log.txt``, and in the terminal what somebody reads who starts a training.

Both are safe to look at: color codes are left out of messages, and what else controls a terminal is escaped.
"""

import atexit
import contextlib
import copy
import functools
import logging
import re
import sys
import threading
from typing import Any

from detectron2.utils.logger import setup_logger

from retina_plugin.core.failures import explain_failure
from retina_plugin.core.text import printable

_COLORS = re.compile("\x1b\\[[0-9;]*m")  # Detectron2 colors tables and configurations
# Until one of these loggers speaks, the terminal shows our own lines, single lines about weights, and warnings.
_WORK_BEGINS = ("detectron2.engine.train_loop", "detectron2.evaluation.evaluator", "detectron2.utils.events")


def setup_logs(output_dir: str, rank: int) -> None:
    """Set up the loggers of Detectron2, fvcore and this package, before Detectron2's ``default_setup``.

    Args:
        output_dir: gets ``log.txt`` and, of other ranks than 0, ``log.txt.rankN``; empty for no file.
        rank: of this process. Rank 0 also logs to the terminal.
    """
    # As default_setup calls it, which then finds the loggers set up.
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir, distributed_rank=rank)
    setup_logger(output_dir, distributed_rank=rank, name="retina_plugin", abbrev_name="retina")
    short_start = _ShortStart()
    for name in ("fvcore", "detectron2", "retina_plugin"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler.formatter, PrintableFormatter):  # of an earlier job in this process
                continue
            handler.setFormatter(PrintableFormatter(handler.formatter or logging.Formatter()))
            handler.handleError = functools.partial(_report_once, handler)  # type: ignore[method-assign]
            stream = getattr(handler, "stream", None)
            if stream is sys.stdout:
                handler.addFilter(short_start)
            elif stream is not None:
                atexit.register(_close, stream)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _explain_in_thread


_reported: set[logging.Handler] = set()


def _report_once(handler: logging.Handler, record: logging.LogRecord) -> None:
    """In place of ``logging``'s traceback for every record, if a disk is full."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
    elif handler not in _reported:
        _reported.add(handler)
        name = getattr(getattr(handler, "stream", None), "name", "a log")
        print(f"warning: {name} is incomplete: {error.strerror}", file=sys.stderr)


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):  # what it could not write before; Detectron2 closes it after this
        stream.close()


def _explain_in_thread(args: threading.ExceptHookArgs) -> None:
    """In place of a traceback of TensorBoard's thread, if a disk is full."""
    explained = explain_failure(args.exc_value) if args.exc_value else None
    if explained:
        print(f"warning: {printable(str(explained))}", file=sys.stderr)
    else:
        threading.__excepthook__(args)


class PrintableFormatter(logging.Formatter):
    """Formats records as another formatter does, without color codes and control characters of their content."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        shown = copy.copy(record)
        shown.msg, shown.args = _clean(record.getMessage()), None
        if record.exc_info:
            shown.exc_text = _clean(self._formatter.formatException(record.exc_info))
        text = self._formatter.format(shown)
        record.name = shown.name  # Detectron2 shortens it for the handlers that follow
        return text


class _ShortStart(logging.Filter):
    """Keeps what Detectron2 logs of its start (environment, configuration, model) out of the terminal."""

    has_begun = False

    def filter(self, record: logging.LogRecord) -> bool:
        self.has_begun = self.has_begun or record.name in _WORK_BEGINS
        if self.has_begun or record.levelno >= logging.WARNING or record.name.startswith("retina_plugin"):
            return True
        return record.name == "fvcore.common.checkpoint" and "\n" not in record.getMessage()


def _clean(text: str) -> str:
    return printable(_COLORS.sub("", text))
