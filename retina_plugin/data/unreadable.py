"""Counts training images that could not be read, and says which."""

import logging

from retina_plugin.core.errors import TrainingDataError

LINES = 10


class UnreadableImages:
    """The images of a run, of all its processes, that could not be read.

    The first ``LINES`` of them are in the log, then the count whenever it has doubled.
    """

    def __init__(self, limit):
        """
        Args:
            limit: how many different images may be unreadable.
        """
        self.limit = limit
        self._reasons = {}
        self._next_summary = 2 * LINES
        self._logger = logging.getLogger(__name__)

    def __len__(self):
        return len(self._reasons)

    def add(self, reports):
        """Take up (file name, reason) pairs, of which some may be known."""
        for name, reason in reports:
            if name in self._reasons:
                continue
            self._reasons[name] = reason
            if len(self) <= LINES:
                last = " Further ones are only counted" if len(self) == LINES else ""
                self._logger.warning("%s cannot be read (%s): another image is taken.%s", name, reason, last)
        if len(self) >= self._next_summary:
            self._logger.warning("%d training images could not be read so far.", len(self))
            self._next_summary = 2 * len(self)

    def check(self):
        """Raise ``TrainingDataError`` if there are more than the limit."""
        if len(self) > self.limit:
            raise TrainingDataError(
                f"{len(self)} different training images could not be read, and DATALOADER.MAX_UNREADABLE allows "
                f"{self.limit}:\n{self.examples()}\nRepair them, or take them out of the data set, or raise the limit"
            )

    def examples(self, count=5):
        """A line for each of the first few."""
        lines = [f"  {name}: {reason}" for name, reason in list(self._reasons.items())[:count]]
        if len(self) > count:
            lines.append(f"  and {len(self) - count} more")
        return "\n".join(lines)

    def state_dict(self):
        return dict(self._reasons)

    def load_state_dict(self, state):
        self._reasons = dict(state)
        self._next_summary = 2 * max(LINES, len(state))
