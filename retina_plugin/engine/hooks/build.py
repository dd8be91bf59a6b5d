"""Adds validation, best-checkpoint and progress hooks, in dependency order."""

from functools import partial

from detectron2.engine import DefaultTrainer, HookBase, hooks

from retina_plugin.engine.hooks.best_checkpoint import BestCheckpoint
from retina_plugin.engine.hooks.early_stopping import EarlyStopping
from retina_plugin.engine.hooks.progress import Progress
from retina_plugin.engine.hooks.validation_loss import ValidationLoss
from retina_plugin.engine.run_state import RunState


def build_monitoring_hooks(trainer: DefaultTrainer, run_state: RunState) -> list[HookBase]:
    """Build the hooks whose place is after the evaluation and before the writers.

    Raises:
        ConfigError: see :class:`ValidationLoss`.
    """
    cfg, test = trainer.cfg, trainer.cfg.TEST
    built: list[HookBase] = []
    if test.VAL_LOSS_PERIOD > 0:
        validate = partial(run_state.evaluate, "validation_loss", trainer, ValidationLoss(cfg, trainer.model))
        built.append(hooks.EvalHook(test.VAL_LOSS_PERIOD, validate))
    metric, mode = test.BEST_CHECKPOINT.METRIC, test.BEST_CHECKPOINT.MODE
    if metric:
        period = test.VAL_LOSS_PERIOD if metric.startswith("validation/") else test.EVAL_PERIOD
        patience, min_delta = test.EARLY_STOPPING.PATIENCE, test.EARLY_STOPPING.MIN_DELTA
        built.append(BestCheckpoint(period, trainer.checkpointer, metric, mode, run_state))
        built.append(EarlyStopping(period, trainer.checkpointer, metric, mode, patience, min_delta))
    num_images = getattr(trainer.data_loader, "num_images", None)  # a project's loader may not know
    built.append(Progress(cfg.LOG_PERIOD, cfg.SOLVER.IMS_PER_BATCH, num_images))
    return built
