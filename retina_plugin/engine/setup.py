"""Turns command-line arguments into a checked configuration, and sets up the process of a rank."""

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from retina_plugin.config import checks, read_config, require_retina_config
from retina_plugin.core.cores import load_per_core, num_cores, oversubscription
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.dataset_checks import class_count_problems, data_problems, empty_problems
from retina_plugin.engine.arguments import processes_of
from retina_plugin.engine.determinism import make_deterministic
from retina_plugin.engine.logs import setup_logs
from retina_plugin.engine.schedule import scale_schedule
from retina_plugin.engine.summary import describe_device
from retina_plugin.evaluation.checks import evaluator_problems, metric_problems


def load_config(args: argparse.Namespace, cfg: CfgNode | None = None) -> CfgNode:
    """Read and check the configuration of a job, before any process is started.

    Args:
        args: parsed by :func:`argument_parser` or by Detectron2's ``default_argument_parser``.
        cfg: holds every known key; None for :func:`retina_plugin.get_cfg`.

    Returns:
        A frozen ``CfgNode``. ``MODEL.DEVICE`` is "cpu" if the configuration asks for a GPU and there is none;
        :func:`setup_rank` logs it.

    Raises:
        ConfigError: with one line for each problem.
    """
    cfg = read_config(
        *(args.config_file, args.opts, getattr(args, "imports", ()), cfg),
        allow_unsafe=getattr(args, "allow_unsafe_yaml", False),
    )
    processes = processes_of(args)
    if not args.eval_only:
        scale_schedule(cfg, processes.world_size)
    check_config(cfg, num_gpus=processes.per_machine, num_machines=processes.machines, eval_only=args.eval_only)
    _check_model_builds(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check_config(cfg: CfgNode, *, num_gpus: int = 1, num_machines: int = 1, eval_only: bool = False) -> None:
    """Check everything that is known before a job starts.

    Args:
        cfg: the full configuration.
        num_gpus: processes per machine: one per GPU or, with ``MODEL.DEVICE`` cpu, on its cores.
        num_machines: number of machines.
        eval_only: whether the training data sets are ignored.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    names = list(cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    problems = [
        *checks.name_problems(cfg),
        *checks.model_problems(cfg),
        *(() if eval_only else checks.rcnn_key_problems(cfg)),
        *checks.process_problems(cfg, num_gpus, num_machines, eval_only),
        *checks.precision_problems(cfg, eval_only),
        *checks.step_problems(cfg, num_gpus * num_machines, eval_only),
        *empty_problems(cfg, eval_only),
        *data_problems(names),
        *evaluator_problems(cfg),
        *class_count_problems(cfg, names),
        *(() if eval_only else checks.monitoring_problems(cfg)),
        *(() if eval_only else metric_problems(cfg)),
    ]
    if problems:
        raise ConfigError(problems)


def _check_model_builds(cfg: CfgNode) -> None:
    """Build the model on the meta device, so that problems are reported before any process is started."""
    if not checks.builds_focal_retinanet(cfg):
        return
    try:
        with torch.device("meta"):  # no memory, no time
            META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    except ConfigError:
        raise
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError([f"the model cannot be built: {' '.join(map(str, error.args))}"]) from error
    except Exception as error:
        # The settings may be right: some backbones compute with tensors when they are built, which "meta" cannot.
        logging.getLogger(__name__).debug("The model was not checked ahead of time: %r", error)


def setup_rank(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up logging, seed and output folder of this process; see Detectron2's ``default_setup``."""
    if cfg.DETERMINISTIC:
        make_deterministic()
    setup_logs(cfg.OUTPUT_DIR, comm.get_rank())
    default_setup(cfg, args)
    logger, processes = logging.getLogger(__name__), comm.get_local_size()
    logger.info("Output: %s; its log.txt has what is not shown here.", cfg.OUTPUT_DIR)
    if comm.get_world_size() > 1:
        logger.info("%d processes, %d on this machine.", comm.get_world_size(), processes)
    logger.info(describe_device(cfg))
    sentence = oversubscription(processes, torch.get_num_threads(), num_cores(), load_per_core())
    if sentence and comm.get_local_rank() == 0:
        logger.warning(sentence)
