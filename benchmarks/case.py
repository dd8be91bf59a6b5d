"""What a benchmark is made of: cases, each with several implementations that do the same work."""

from collections.abc import Callable
from typing import NamedTuple


class Disagreement(RuntimeError):
    """Two implementations of a case do not compute the same: their times cannot be compared."""


class Step(NamedTuple):
    """The work of one implementation.

    Attributes:
        run: what is timed.
        prepare: called before each ``run`` and not timed, such as dropping the gradients of the run before.
        outcome: what ``run`` returned -> dict of tensors that :meth:`Case.check` compares. Called before anything
            is timed.
    """

    run: Callable
    prepare: Callable = lambda: None
    outcome: Callable = lambda returned: {}


def copy_step(tensors):
    """The step that only copies tensors, into memory that is there already: what reading and writing them takes."""
    originals = [x.detach() for x in tensors]
    copies = [x.clone() for x in originals]

    def run():
        for x, copy in zip(originals, copies):
            copy.copy_(x)

    return Step(run)


class Case:
    """One job, done by each of ``implementations``.

    A case is known by the arguments of the command and its place in the list of cases alone, so that another process
    can make it again; inputs and models are made when an implementation's step is.

    Attributes:
        group: cases of a group share a table.
        name: what distinguishes it from the others of its group.
        implementations: names of the implementations, in the order in which they take turns.
        reference: the implementation that the others are compared with.
        lower_bounds: implementation -> name of the implementation below which it cannot come.
        scale: bytes of the inputs, which the memory of every implementation grows with.
        moved_bytes: bytes that no implementation can avoid to read or write; 0 where that is no measure.
        warmup: rounds that are not counted, after the one that is checked.
    """

    reference = "Detectron2"
    lower_bounds = {}
    scale = 0
    moved_bytes = 0
    warmup = 1

    def __init__(self, group, name, implementations):
        self.group, self.name, self.implementations = group, name, tuple(implementations)

    def step(self, impl):
        """Make the :class:`Step` of an implementation, with everything that it needs."""
        raise NotImplementedError

    def miniature(self):
        """The same case on inputs so small that they cost nothing; see :mod:`benchmarks.memory`."""
        raise NotImplementedError

    def obstacle(self, impl):
        """Why the implementation cannot run on this machine, or None."""
        return None

    def inherent_bytes(self, impl):
        """Bytes that the implementation allocates by definition, such as the gradient it is asked for."""
        return 0

    def check(self, impl, outcome, expected):
        """Compare the outcome of an implementation with the reference's.

        Raises:
            Disagreement: they are not those of the same computation.
        """


def require_close(what, value, expected, tolerance):
    """Raise :class:`Disagreement` unless the largest difference is at most ``tolerance`` of the largest magnitude."""
    value, expected = value.float(), expected.float()
    if value.shape != expected.shape:
        raise Disagreement(f"{what}: shape {tuple(value.shape)}, but the reference has {tuple(expected.shape)}")
    if value.numel() == 0:
        return
    difference = ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
    if not difference <= tolerance:  # not a number, too
        raise Disagreement(f"{what}: differs from the reference by {difference:.1e} (relative), more than {tolerance}")
