"""The errors that end a job or a command with a message for the user, in place of a traceback."""

from collections.abc import Iterable

from retina_plugin.core.text import printable


class UserError(Exception):
    """An error whose message is written for the user: what is wrong, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A configuration or command line that cannot be used. The message has one line per problem."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):  # it may cross processes
        return type(self), (self.problems,)


class FileError(UserError, OSError):
    """A path that cannot be read as a file, or must not be written. The message begins with the path."""


class ImageError(FileError):
    """An image or a video that cannot be read.

    Attributes:
        path: the file, or what else names the image.
        reason: without the path.
    """

    def __init__(self, path: str, reason: str):
        self.path, self.reason = path, reason
        super().__init__(f"{path} cannot be read: {reason}")

    def __reduce__(self):  # it may cross processes
        return type(self), (self.path, self.reason)


class CheckpointError(UserError, ValueError):
    """Weights that cannot be used. The message names the file, what is wrong with it, and what to do."""


class TrainingDataError(UserError, RuntimeError):
    """Training images that cannot be read: too many of them, or all that were tried first."""


class DivergenceError(UserError, FloatingPointError):
    """Training had too many steps that were not finite. The message names what is left and what to do."""


class LaunchError(UserError, RuntimeError):
    """The processes of a job did not come together, or one of them failed."""


class MachineError(UserError, RuntimeError):
    """The machine failed the job: a disk is full, or a process was killed. The message says what to do."""


def format_error(error: BaseException) -> str:
    """The message of an error with ``error:`` before each problem of a :class:`ConfigError`, else once.

    Characters of names in it that control a terminal are escaped.
    """
    problems = error.problems if isinstance(error, ConfigError) else [error]
    return "\n".join(f"error: {printable(str(problem))}" for problem in problems)
