"""What ends a job with a message for the user, in place of a traceback."""

from retina_plugin.checkpoint import CheckpointError
from retina_plugin.config import ConfigError
from retina_plugin.data.reading import TrainingDataError
from retina_plugin.engine.divergence import DivergenceError
from retina_plugin.engine.meeting import LaunchError

# Of a process that has started its work.
WORK_ERRORS = (ConfigError, CheckpointError, TrainingDataError, DivergenceError)
JOB_ERRORS = (*WORK_ERRORS, LaunchError)


def error_text(error):
    """The message of one of ``JOB_ERRORS``, of a ``ConfigError`` with a line for each problem."""
    problems = error.problems if isinstance(error, ConfigError) else [error]
    return "\n".join(f"error: {problem}" for problem in problems)
