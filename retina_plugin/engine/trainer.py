"""Detectron2's ``DefaultTrainer`` with an evaluator, a check of the data, bf16 and checkpoints that can be trusted."""

import logging
import warnings

from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.config import ConfigError, require_retina_config
from retina_plugin.config_checks import check_class_count
from retina_plugin.data.class_names import common_class_names
from retina_plugin.engine.step import TrainingStep
from retina_plugin.evaluation import build_evaluator


class RetinaTrainer(DefaultTrainer):
    """Trains and evaluates a configured model. ``ConfigError`` if its classes are not those of the data."""

    def __init__(self, cfg):
        require_retina_config(cfg)
        with warnings.catch_warnings():
            # Of a GradScaler, which Detectron2 makes for every AMP; TrainingStep uses it where it is of use.
            warnings.filterwarnings("ignore", message=".*GradScaler")
            super().__init__(cfg)
        self._trainer = TrainingStep(self._trainer, self.cfg)

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
        return super().build_hooks()

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def build_train_loader(cls, cfg):
        loader = super().build_train_loader(cfg)
        for name in cfg.DATASETS.TRAIN:
            check_class_count(cfg, name)
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        loader = super().build_test_loader(cfg, dataset_name)
        check_class_count(cfg, dataset_name)
        return loader

    # Detectron2 0.6 writes neither optimizer nor gradient scaler into its checkpoints, so that a resumed run would
    # start with zero momentum. Main writes both, under the name used here.

    def state_dict(self):
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" not in state_dict:
            logging.getLogger(__name__).warning(
                "The checkpoint has no optimizer state (Detectron2 0.6 wrote it): momentum starts at zero."
            )
        # What the checkpoint lacks stays as it is, such as the gradient scaler of a run resumed with AMP.
        self._trainer.load_state_dict({**self._trainer.state_dict(), **state_dict.get("_trainer", {})})


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
