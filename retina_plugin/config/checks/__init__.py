"""What would train the wrong thing, or fail late and without a name, is refused at the start.

Each check yields a line a problem: the key, its value, and what to do. What a single part can judge for
itself (a range, the name of a mode) is checked where the part is built.
"""

from retina_plugin.config import require_retina_config
from retina_plugin.config.checks.data import class_count_problems, data_problems, empty_problems, evaluator_problems
from retina_plugin.config.checks.metrics import metric_key_problems
from retina_plugin.config.checks.model import builds_focal_retinanet, model_problems, name_problems
from retina_plugin.config.checks.training import precision_problems, process_problems, step_problems
from retina_plugin.core.errors import ConfigError

__all__ = ["builds_focal_retinanet", "check_class_count", "check_config", "check_datasets", "check_model_config"]


def check_config(cfg, *, num_gpus=1, num_machines=1, eval_only=False):
    """Check everything that is known before a job starts.

    Args:
        cfg: the full configuration.
        num_gpus: processes of each machine, one a GPU; or with ``MODEL.DEVICE`` cpu, on its cores.
        num_machines: machines that take part.
        eval_only: whether the training data sets are left alone.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    names = list(cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    _refuse(
        *name_problems(cfg),
        *model_problems(cfg),
        *process_problems(cfg, num_gpus, num_machines, eval_only),
        *precision_problems(cfg, eval_only),
        *step_problems(cfg, num_gpus * num_machines, eval_only),
        *empty_problems(cfg, eval_only),
        *data_problems(names),
        *evaluator_problems(cfg),
        *class_count_problems(cfg, names),
        *(() if eval_only else metric_key_problems(cfg, builds_focal_retinanet(cfg))),
    )


def check_model_config(cfg):
    """Check the keys that ``FocalRetinaNet`` is built from.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    _refuse(*name_problems(cfg), *model_problems(cfg))


def check_datasets(names):
    """Check that data sets are registered and that their files exist.

    Raises:
        ConfigError: with one line for each problem.
    """
    _refuse(*data_problems(names))


def check_class_count(cfg, dataset_name):
    """Check the number of classes against a data set that has been loaded.

    A set that is no COCO file may name its classes only then; :func:`check_config` compares all others.

    Raises:
        ConfigError: they disagree.
    """
    _refuse(*class_count_problems(cfg, [dataset_name]))


def _refuse(*problems):
    if problems:
        raise ConfigError(problems)
