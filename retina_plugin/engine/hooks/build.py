"""Where the hooks that watch stand among Detectron2's."""

from detectron2.engine import hooks
from detectron2.utils import comm

from retina_plugin.engine.hooks.progress import Progress
from retina_plugin.engine.hooks.validation_loss import ValidationLoss
from retina_plugin.engine.hooks.watched_metric import WatchedMetric


def metric_period(cfg):
    """Iterations between two evaluations that give ``TEST.BEST_CHECKPOINT.METRIC``; 0: the one at the end alone."""
    of_losses = cfg.TEST.BEST_CHECKPOINT.METRIC.startswith("validation/")
    return cfg.TEST.VAL_LOSS_PERIOD if of_losses else cfg.TEST.EVAL_PERIOD


def with_watching_hooks(trainer, made):
    """Add the hooks that the configuration asks for.

    Args:
        trainer: a ``DefaultTrainer``.
        made: list of the hooks that it has built.

    Returns:
        list of hooks in an order in which each finds what it needs: evaluations, their judge, writers.

    Raises:
        ConfigError: of :class:`ValidationLoss`.
    """
    cfg = trainer.cfg
    writers = [hook for hook in made if isinstance(hook, hooks.PeriodicWriter)]
    added = []
    if cfg.TEST.VAL_LOSS_PERIOD > 0:
        added.append(hooks.EvalHook(cfg.TEST.VAL_LOSS_PERIOD, ValidationLoss(cfg, trainer.model)))
    if cfg.TEST.BEST_CHECKPOINT.METRIC:
        added.append(
            WatchedMetric(
                cfg.TEST.BEST_CHECKPOINT.METRIC,
                cfg.TEST.BEST_CHECKPOINT.MODE,
                period=metric_period(cfg),
                checkpointer=trainer.checkpointer,
                patience=cfg.TEST.EARLY_STOPPING.PATIENCE,
                min_delta=cfg.TEST.EARLY_STOPPING.MIN_DELTA,
            )
        )
    if comm.is_main_process():
        size = getattr(trainer.data_loader, "num_images", None)  # another project's loader may not tell
        added.append(Progress(cfg.LOG_PERIOD, cfg.SOLVER.IMS_PER_BATCH, size))
    for hook in writers:
        hook._period = cfg.LOG_PERIOD  # 20 in Detectron2, whatever the configuration says
    return [hook for hook in made if hook not in writers] + added + writers
