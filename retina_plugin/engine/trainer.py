"""The trainer: what Detectron2's ``DefaultTrainer`` builds, and what this plugin builds in its place."""

import logging
import warnings

from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.config import require_retina_config
from retina_plugin.config.checks import check_class_count
from retina_plugin.core.errors import ConfigError
from retina_plugin.data.class_names import common_class_names
from retina_plugin.data.loader import build_resumable_train_loader
from retina_plugin.engine.hooks import TrainingEnded, with_watching_hooks
from retina_plugin.engine.per_rank_buffers import PerRankBuffers
from retina_plugin.engine.resumable import ResumableTrainer
from retina_plugin.engine.schedule import schedule_table
from retina_plugin.engine.signals import InterruptibleLoader
from retina_plugin.engine.step import TrainingStep
from retina_plugin.engine.writers import ProgressPrinter
from retina_plugin.evaluation import BoxEvaluator, build_evaluator


class RetinaTrainer(ResumableTrainer):
    """Trains and evaluates a configured model. ``ConfigError`` if its classes are not those of the data."""

    def __init__(self, cfg):
        require_retina_config(cfg)
        with warnings.catch_warnings():
            # Of a GradScaler, which Detectron2 makes for every AMP; TrainingStep uses it where it is of use.
            warnings.filterwarnings("ignore", message=".*GradScaler")
            super().__init__(cfg)
        self._trainer = TrainingStep(self._trainer, self.cfg)

    def train(self):
        """Train until ``SOLVER.MAX_ITER`` or the end that early stopping makes; see :class:`ResumableTrainer`."""
        num_images = getattr(self.data_loader, "num_images", None)
        if num_images:
            logging.getLogger(__name__).info(schedule_table(self.cfg, num_images))
        try:
            return super().train()
        except TrainingEnded:
            # Detectron2 verifies where training has come to its last iteration.
            results = getattr(self, "_last_eval_results", None)
            if results and self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
                verify_results(self.cfg, results)
            return results

    def build_hooks(self):
        # Detectron2 has just made its own checkpointer, and here hands it to the hooks.
        made = self.checkpointer
        self.checkpointer = RetinaCheckpointer(
            made.model,
            made.save_dir,
            class_names=_class_names(self.cfg.DATASETS.TRAIN),
            allow_pickle=self.cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
            save_to_disk=made.save_to_disk,
            **made.checkpointables,
        )
        periods = self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD
        made_hooks = PerRankBuffers.add_to(super().build_hooks(), made.model, periods)
        return with_watching_hooks(self, made_hooks)

    def build_writers(self):
        return [
            ProgressPrinter(self.max_iter) if isinstance(writer, CommonMetricPrinter) else writer
            for writer in super().build_writers()
        ]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return super().test(cfg, model, _EvaluatorsOfModel(cls, cfg, model) if evaluators is None else evaluators)

    @classmethod
    def build_train_loader(cls, cfg):
        loader = build_resumable_train_loader(cfg)
        for name in cfg.DATASETS.TRAIN:
            check_class_count(cfg, name)
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        loader = super().build_test_loader(cfg, dataset_name)
        check_class_count(cfg, dataset_name)
        return InterruptibleLoader(loader)


class _EvaluatorsOfModel:
    """The evaluators of ``DATASETS.TEST`` for Detectron2, which tells them nothing of the model.

    As there, each is built when its data set has been loaded.
    """

    def __init__(self, trainer, cfg, model):
        self._trainer, self._cfg, self._model = trainer, cfg, model

    def __len__(self):
        return len(self._cfg.DATASETS.TEST)

    def __getitem__(self, index):
        evaluator = self._trainer.build_evaluator(self._cfg, self._cfg.DATASETS.TEST[index])
        if isinstance(evaluator, BoxEvaluator):
            evaluator.model = self._model
        return evaluator


def evaluate(cfg, *, resume=False):
    """Evaluate weights on ``DATASETS.TEST``.

    Args:
        cfg: a configuration.
        resume: evaluate the last checkpoint in ``OUTPUT_DIR`` instead of ``MODEL.WEIGHTS``.

    Returns:
        dict: of :meth:`DefaultTrainer.test`.

    Raises:
        CheckpointError: the weights are not those of this model, or of the classes of the data.
    """
    model = RetinaTrainer.build_model(cfg)
    checkpointer = RetinaCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        strict=True,
        class_names=_class_names(cfg.DATASETS.TEST),
        allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = RetinaTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _class_names(dataset_names):
    try:
        return common_class_names(dataset_names)
    except ValueError as error:
        raise ConfigError([f"DATASETS: {error}"]) from error
