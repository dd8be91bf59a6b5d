"""From command-line arguments to a checked configuration, and to a worker that is ready."""

import logging

import torch
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.config.checks import builds_focal_retinanet, check_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.engine.arguments import processes_of
from retina_plugin.engine.determinism import make_deterministic
from retina_plugin.engine.schedule import scale_schedule


def load_config(args):
    """Read and check the configuration of a job, before any process is started.

    Args:
        args: of :func:`argument_parser`, or of Detectron2's own.

    Returns:
        A frozen ``CfgNode``. ``MODEL.DEVICE`` is "cpu" where the configuration asks for a GPU and there is
        none; :func:`setup_rank` says so in the log.

    Raises:
        ConfigError: with one line for each problem.
    """
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, args.config_file, args.opts)
    processes = processes_of(args)
    if not args.eval_only:
        scale_schedule(cfg, processes.world_size)
    check_config(cfg, num_gpus=processes.per_machine, num_machines=processes.machines, eval_only=args.eval_only)
    _check_model_builds(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _check_model_builds(cfg):
    # What a part finds wrong with its settings, the user reads here and not in the traceback of some process.
    if not builds_focal_retinanet(cfg):
        return
    try:
        with torch.device("meta"):  # no memory, no time
            META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    except ConfigError:
        raise
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError([f"the model cannot be built: {' '.join(map(str, error.args))}"]) from error
    except Exception as error:
        # Not the settings' fault: some backbones compute with tensors when they are built, which "meta" cannot.
        logging.getLogger(__name__).debug("The model was not checked ahead of time: %r", error)


def setup_rank(cfg, args):
    """Set up log, seed and output folder of this process; see Detectron2's ``default_setup``."""
    if cfg.DETERMINISTIC:
        make_deterministic()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="retina_plugin", abbrev_name="retina")
    logger = logging.getLogger(__name__)
    if comm.get_world_size() > 1:
        sizes = comm.get_world_size(), comm.get_local_size(), torch.get_num_threads()
        logger.info("%d processes, %d on this machine, with %d CPU threads each (OMP_NUM_THREADS sets it).", *sizes)
    elif cfg.MODEL.DEVICE == "cpu" and not torch.cuda.is_available():
        threads = torch.get_num_threads()
        logger.info("There is no GPU here: running on the CPU (MODEL.DEVICE cpu) with %d threads.", threads)
