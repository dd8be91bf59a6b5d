"""Turns command-line arguments into a checked configuration, and sets up the process of a rank."""

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm

from retina_plugin.config import checks, read_config, require_retina_config
from retina_plugin.config.checks import values
from retina_plugin.config.coco_files import register_coco_files
from retina_plugin.core.cores import load_per_core, num_cores, oversubscription
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.dataset_checks import class_problems, data_problems, empty_problems
from retina_plugin.engine.arguments import processes_of
from retina_plugin.engine.data_arguments import config_file_of, use_data_arguments
from retina_plugin.engine.determinism import make_deterministic
from retina_plugin.engine.logs import setup_logs
from retina_plugin.engine.model_check import check_model
from retina_plugin.engine.overrides import overrides
from retina_plugin.engine.schedule import scale_schedule, schedule_problems
from retina_plugin.engine.summary import describe_device
from retina_plugin.engine.trainer import RetinaTrainer
from retina_plugin.evaluation.checks import evaluator_problems, metric_problems


def load_config(
    args: argparse.Namespace, cfg: CfgNode | None = None, trainer: type[DefaultTrainer] = RetinaTrainer
) -> CfgNode:
    """Read and check the configuration of a job, before any process is started.

    Args:
        args: parsed by :func:`argument_parser` or by Detectron2's ``default_argument_parser``.
        cfg: holds every known key; None for :func:`retina_plugin.get_cfg`.
        trainer: the class that trains. Its own ``build_*`` methods may read other values than Detectron2's.

    Returns:
        A frozen ``CfgNode``. ``MODEL.DEVICE`` is "cpu" if the configuration asks for a GPU and there is none;
        :func:`setup_rank` logs it.

    Raises:
        ConfigError: with one line for each problem.
    """
    cfg = read_config(
        *(config_file_of(args), args.opts, getattr(args, "imports", ()), cfg),
        allow_unsafe=getattr(args, "allow_unsafe_yaml", False),
    )
    register_coco_files(cfg)
    use_data_arguments(cfg, args)
    processes = processes_of(args)
    if not args.eval_only and not list(schedule_problems(cfg)):  # else check_config says them, with all others
        scale_schedule(cfg, processes.world_size)
    job = {"num_gpus": processes.per_machine, "num_machines": processes.machines, "eval_only": args.eval_only}
    check_config(cfg, **job, trainer=trainer)
    check_model(cfg, 1 if args.eval_only else processes.world_size)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check_config(
    cfg: CfgNode,
    *,
    num_gpus: int = 1,
    num_machines: int = 1,
    eval_only: bool = False,
    trainer: type[DefaultTrainer] = RetinaTrainer,
) -> None:
    """Check everything that is known before a job starts.

    Args:
        cfg: the full configuration.
        num_gpus: processes per machine: one per GPU or, with ``MODEL.DEVICE`` cpu, on its cores.
        num_machines: number of machines.
        eval_only: whether the training data sets are ignored.
        trainer: see :func:`load_config`.

    Raises:
        ConfigError: with one line for each problem.
    """
    require_retina_config(cfg)
    checks.require_values(cfg)
    replaced, rows = _replaced_methods(trainer), [*values.MODEL, *values.JOB, *(() if eval_only else values.TRAINING)]
    names = list(cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    problems = [
        *checks.name_problems(cfg),
        *checks.value_problems(cfg, rows, replaced),
        *checks.model_problems(cfg),
        *(() if eval_only else checks.rcnn_key_problems(cfg)),
        *checks.tile_problems(cfg, eval_only),
        *checks.output_dir_problems(cfg),
        *checks.process_problems(cfg, num_gpus, num_machines, eval_only),
        *checks.precision_problems(cfg, eval_only),
        *checks.step_problems(cfg, num_gpus * num_machines, eval_only),
        *empty_problems(cfg, eval_only),
        *data_problems(names),
        *(() if "build_evaluator" in replaced else evaluator_problems(cfg)),
        *class_problems(cfg, names),
        *(() if eval_only else schedule_problems(cfg)),
        *(() if eval_only else checks.monitoring_problems(cfg)),
        *(() if eval_only else metric_problems(cfg)),
    ]
    if problems:
        raise ConfigError(problems)


def _replaced_methods(trainer: type[DefaultTrainer]) -> set[str]:
    """Names of the ``build_*`` methods of a project's trainer that are not the plugin's."""
    builders = [name for name in dir(RetinaTrainer) if name.startswith("build_")]
    return {name for name in builders if overrides(trainer, name, RetinaTrainer)}


def setup_rank(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up logging, seed and output folder of this process; see Detectron2's ``default_setup``."""
    register_coco_files(cfg)  # this process may have been started by load_config's
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
