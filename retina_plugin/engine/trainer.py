"""Training with Detectron2's ``DefaultTrainer``, resumed exactly, and evaluation.

A run that was interrupted and resumed computes what it would have computed without the interruption: the checkpoint
has the place in the training data, and every iteration seeds the random generators. A checkpoint is written before the
evaluation of its iteration. When the run is resumed, the hooks from the evaluation on run again for that iteration; an
evaluation that was done has its results in ``run_state.json`` (:mod:`retina_plugin.engine.run_state`).
"""

import itertools
import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from retina_plugin.checkpoint import CheckpointError, RetinaCheckpointer
from retina_plugin.config import require_retina_config
from retina_plugin.core.comm import any_rank
from retina_plugin.core.errors import TrainingDataError
from retina_plugin.core.failures import explain_failure, explain_failures
from retina_plugin.core.rng import seed_all
from retina_plugin.data.class_names import common_class_names
from retina_plugin.data.dataset_checks import check_class_count
from retina_plugin.data.loader import ResumableTrainLoader, build_resumable_train_loader
from retina_plugin.data.loading import explain_loading
from retina_plugin.data.reading import EvaluationMapper
from retina_plugin.data.windows import WindowsMapper
from retina_plugin.diagnostics.zero_ap import explain_zero_ap
from retina_plugin.engine import resume as resuming
from retina_plugin.engine import signals
from retina_plugin.engine.dry_evaluation import dry_evaluate
from retina_plugin.engine.dry_read import dry_read
from retina_plugin.engine.hooks import TrainingEnded, build_monitoring_hooks
from retina_plugin.engine.model_check import check_batch_norm, translate_batch_norm_error
from retina_plugin.engine.overrides import overrides
from retina_plugin.engine.per_rank_buffers import PerRankBuffers
from retina_plugin.engine.poor_anchors import warn_of_poor_anchors
from retina_plugin.engine.run_state import Results, RunState
from retina_plugin.engine.step import TrainingStep
from retina_plugin.engine.summary import start_summary
from retina_plugin.engine.writers import MetricsWriter, PeriodicWriter, ProgressPrinter
from retina_plugin.evaluation import build_evaluator
from retina_plugin.modeling.inference.tiled import TiledInference

_WHAT_NEXT = "Checkpoints that were complete stay as they are: --resume goes on from the last one"


class RetinaTrainer(DefaultTrainer):
    """Trains and evaluates a configured model. Its ``build_*`` methods are those of ``DefaultTrainer`` to override.

    Attributes:
        is_resumed: whether the run continues the one in ``OUTPUT_DIR``.
        stop_reason: the exception that ends the training after the current iteration, on all ranks; None to go on.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ConfigError: the configuration lacks the plugin's keys, or its classes are not those of the data.
        """
        TrainerBase.__init__(self)
        require_retina_config(cfg)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        # Detectron2's loop logs every exception with its traceback.
        logging.getLogger("detectron2.engine.train_loop").addFilter(_drop_traceback)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)

        self.cfg = cfg
        self._trainer = TrainingStep(model, data_loader, optimizer, cfg)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = _build_checkpointer(cfg, model, cfg.DATASETS.TRAIN, trainer=weakref.proxy(self))
        self.run_state = RunState(cfg.OUTPUT_DIR, cfg.dump())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.is_resumed = False
        self.stop_reason: BaseException | None = None
        self._seed: int | None = None  # of all iterations; drawn when training starts, or from the checkpoint
        self._metrics_before: dict[str, Any] = {}
        self._precise_bn_loader: Iterable[Any] | None = None
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Build Detectron2's hooks and the plugin's. Checkpoints are written before the first ``EvalHook``."""
        cfg, is_main = self.cfg, comm.is_main_process()
        periods = (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, cfg.TEST.VAL_LOSS_PERIOD)
        built = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._build_precise_bn(),
            PerRankBuffers(self.checkpointer.model, periods),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if is_main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, partial(self.run_state.evaluate, "test", self, self._evaluate)),
            *build_monitoring_hooks(self, self.run_state),
            PeriodicWriter(self.build_writers(), cfg.LOG_PERIOD) if is_main else None,
        ]
        return [hook for hook in built if hook is not None]

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of the log, ``metrics.json`` and TensorBoard."""
        folder = self.cfg.OUTPUT_DIR
        PathManager.mkdirs(folder)
        metrics = MetricsWriter(os.path.join(folder, "metrics.json"))
        return [ProgressPrinter(self.max_iter), metrics, TensorboardXWriter(folder)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        with explain_loading("DATASETS.TRAIN", cfg.DATASETS.TRAIN):
            loader = build_resumable_train_loader(cfg)
        for name in cfg.DATASETS.TRAIN:
            check_class_count(cfg, name)
        if isinstance(loader, ResumableTrainLoader):
            micro_batch = cfg.SOLVER.IMS_PER_BATCH // (comm.get_world_size() * cfg.SOLVER.ACCUMULATE_STEPS)
            check_batch_norm(cfg, micro_batch, loader.images)
            dry_read(cfg, loader.images)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        with explain_loading("DATASETS.TEST", [dataset_name]):
            if cfg.TEST.TILE.SIZE:  # an image is decoded when its tiles are due, and never sent between processes
                mapper, more = WindowsMapper(cfg.INPUT.FORMAT), {"num_workers": 0}
            else:
                mapper, more = DatasetMapper(cfg, is_train=False), {}
            loader = build_detection_test_loader(cfg, dataset_name, mapper=EvaluationMapper(mapper), **more)
        check_class_count(cfg, dataset_name)
        return signals.InterruptibleLoader(loader)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None) -> Results:
        """Evaluate a model on ``DATASETS.TEST``; see ``DefaultTrainer.test``."""
        # A project's has the arguments of DefaultTrainer's.
        if evaluators is None and not overrides(cls, "build_evaluator", RetinaTrainer):
            explain = partial(explain_zero_ap, cfg, getattr(model, "module", model))
            evaluators = [build_evaluator(cfg, name, explain) for name in cfg.DATASETS.TEST]
        if cfg.TEST.TILE.SIZE:
            model = TiledInference(cfg, getattr(model, "module", model))
        return super().test(cfg, model, evaluators)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the run in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``; see ``DefaultTrainer``.

        Raises:
            CheckpointError: the weights cannot be used, or the last checkpoint is missing or broken.
        """
        path = resuming.find_checkpoint(self.checkpointer) if resume else None
        try:
            super().resume_or_load(resume=resume)
        except CheckpointError as error:
            raise (resuming.explain(error, self.checkpointer) if path else error) from error.__cause__
        self.is_resumed, logger = resume, logging.getLogger(__name__)
        if path is not None:
            self.run_state.load()
            logger.info("Resumed from %s at iteration %d of %d.", path, self.start_iter, self.max_iter)
            if self.start_iter >= self.max_iter:
                logger.warning("The training is complete: nothing is left but its evaluation.")
        elif resume:
            logger.warning(
                "Nothing to resume in %s: training starts at iteration 0 from MODEL.WEIGHTS '%s'.",
                *(self.cfg.OUTPUT_DIR, self.cfg.MODEL.WEIGHTS),
            )

    def train(self) -> Results | None:
        """Train until ``SOLVER.MAX_ITER`` or early stopping, and return results as ``DefaultTrainer.train`` does.

        Raises:
            TrainingInterrupted: a signal stopped the training, after a checkpoint was saved.
            TrainingDataError: too many images cannot be read.
            ConfigError: a test set cannot be evaluated (see :func:`dry_evaluate`), or has other classes.
            MachineError: a disk is full, or a data loader worker was killed.
        """
        if any(isinstance(hook, hooks.EvalHook) for hook in self._hooks):
            dry_evaluate(self.cfg, type(self), RetinaTrainer)
            common_class_names([*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST])  # some are known only after loading
        if self._seed is None:
            self._seed = comm.shared_random_seed()
        num_images = getattr(self.data_loader, "num_images", None)  # a project's loader may not know
        for line in start_summary(self.cfg, self.checkpointer.model, num_images):
            logging.getLogger(__name__).info(line)
        # A project's own loader may have a mapper of its own.
        if comm.is_main_process() and not overrides(type(self), "build_train_loader", RetinaTrainer):
            warn_of_poor_anchors(self.cfg, self.checkpointer.model, self.data_loader)
        try:
            with signals.catch_signals(), explain_failures(_WHAT_NEXT):
                return super().train()
        except TrainingEnded:
            results = getattr(self, "_last_eval_results", None)
            if results and self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
                verify_results(self.cfg, results)
            return results
        except (signals.EvaluationInterrupted, signals.TrainingInterrupted) as error:
            comm.synchronize()  # a launcher ends all ranks as soon as one has ended so
            if isinstance(error, signals.TrainingInterrupted):
                raise
            message = "Stopped in the final evaluation. The training is complete; --resume evaluates it"
            raise signals.TrainingInterrupted(message) from None

    def before_train(self) -> None:
        super().before_train()
        # A complete training that is resumed is evaluated again.
        self.run_state.start(self.start_iter - 1 if self.start_iter < self.max_iter else None)
        resuming.restore_metrics(self.storage, self._metrics_before)
        if self.start_iter > 0:
            self.iter = self.storage.iter = self.start_iter - 1
            self._finish_iteration()
            self.iter = self.storage.iter = self.start_iter

    def before_step(self) -> None:
        assert self._seed is not None  # train() draws it
        seed_all(self._seed, self.iter, comm.get_rank())
        super().before_step()

    def run_step(self) -> None:
        try:
            super().run_step()
        except ValueError as error:
            translated = translate_batch_norm_error(error, "an image of this step")
            if translated is error:
                raise
            raise translated from error

    def after_step(self) -> None:
        self.stop_reason = self._agree_to_stop()
        for hook in itertools.takewhile(_is_before_evaluation, self._hooks):
            hook.after_step()
        if self.stop_reason and self.iter + 1 < self.max_iter:
            self._save_and_raise(self.stop_reason)
        self._finish_iteration()

    def after_train(self) -> None:
        self.iter = min(self.iter, self.max_iter)  # Detectron2 counts one more if nothing was left to train
        super().after_train()

    def _finish_iteration(self) -> None:
        """Run the hooks from the evaluation on, whose effect the checkpoint of this iteration does not have."""
        try:
            for hook in itertools.dropwhile(_is_before_evaluation, self._hooks):
                hook.after_step()
        except signals.EvaluationInterrupted:
            self.model.train()  # Detectron2 does this at the end of an evaluation
            self._save_and_raise(signals.TrainingInterrupted("a signal, in the evaluation"))

    def _agree_to_stop(self) -> BaseException | None:
        """What all ranks stop for: a signal that one of them received, or too many unreadable images."""
        loader = self.data_loader if isinstance(self.data_loader, ResumableTrainLoader) else None
        signal_name, reports = signals.signal_received(), loader.pop_reports() if loader else []
        reason: BaseException | None = None
        if any_rank(signal_name or reports):
            names, lists = zip(*comm.all_gather((signal_name, reports)))
            try:
                if loader:
                    loader.unreadable.add(itertools.chain(*lists))
                    loader.unreadable.check()
            except TrainingDataError as error:
                reason = error
            if any(names):
                reason = signals.TrainingInterrupted(next(filter(None, names)))
        if loader and len(loader.unreadable):
            self.storage.put_scalar("unreadable_images", len(loader.unreadable), smoothing_hint=False)
        return reason

    def _save_and_raise(self, reason: BaseException) -> None:
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        comm.synchronize()  # until the file is written
        logging.getLogger(__name__).warning(
            "%s: stopped at iteration %d of %d. The checkpoint is written; --resume goes on from it.",
            *(reason, self.iter + 1, self.max_iter),
        )
        raise reason

    def _evaluate(self) -> Results:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _build_precise_bn(self) -> HookBase | None:
        cfg = self.cfg.clone()
        if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # as in Detectron2, to save memory
        self._precise_bn_loader = self.build_train_loader(cfg)
        num_iter = cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, self._precise_bn_loader, num_iter)

    # Detectron2 0.6 saves neither optimizer nor gradient scaler; main saves both, under the name used here.

    def state_dict(self) -> dict[str, Any]:
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "streams": [loader.state_dict() for loader in self._resumable_loaders()],
            "seed": self._seed,
            "metrics": resuming.metrics_state(self.storage) if hasattr(self, "storage") else {},
            "config": self.cfg.dump(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        logger = logging.getLogger(__name__)
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" not in state_dict:
            logger.warning("The checkpoint has no optimizer state (Detectron2 0.6 wrote it): momentum starts at zero.")
        # What the checkpoint lacks stays as it is, such as the gradient scaler of a run resumed with AMP.
        self._trainer.load_state_dict({**self._trainer.state_dict(), **state_dict.get("_trainer", {})})
        loaders, states = self._resumable_loaders(), state_dict.get("streams", [])
        if not loaders or not states:
            who = "checkpoint" if loaders else "data loader of this trainer"
            logger.warning("The order of the training images starts anew: the %s does not keep it.", who)
        for loader, state in zip(loaders, states):
            loader.load_state_dict(state)
        self._seed = state_dict.get("seed", self._seed)
        self._metrics_before = state_dict.get("metrics", {})
        if "config" in state_dict:
            resuming.warn_of_differences(state_dict["config"], self.cfg)

    def _resumable_loaders(self) -> list[ResumableTrainLoader]:
        loaders = (self.data_loader, self._precise_bn_loader)
        return [loader for loader in loaders if isinstance(loader, ResumableTrainLoader)]


def evaluate(cfg: CfgNode, *, resume: bool = False, trainer: type[RetinaTrainer] = RetinaTrainer) -> Results:
    """Evaluate weights on ``DATASETS.TEST``.

    Args:
        resume: evaluate the last checkpoint in ``OUTPUT_DIR`` instead of ``MODEL.WEIGHTS``.
        trainer: builds model, data and evaluators.

    Raises:
        CheckpointError: the weights are not those of this model, or of the classes of the data.
        ConfigError: a test set cannot be evaluated, see :func:`dry_evaluate`.
        FileError: a test image cannot be read.
        MachineError: a disk is full, or a data loader worker was killed.
    """
    dry_evaluate(cfg, trainer, RetinaTrainer)
    with explain_failures():
        model = trainer.build_model(cfg)
        checkpointer = _build_checkpointer(cfg, model, cfg.DATASETS.TEST, strict=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        results = trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _build_checkpointer(cfg: CfgNode, model: nn.Module, datasets: Sequence[str], **options: Any) -> RetinaCheckpointer:
    options["class_names"] = common_class_names(datasets)
    return RetinaCheckpointer(model, cfg.OUTPUT_DIR, allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE, **options)


def _is_before_evaluation(hook: HookBase) -> bool:
    return not isinstance(hook, hooks.EvalHook)


def _drop_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error and (explained := explain_failure(error)):
        record.exc_info, record.msg, record.args = None, "Training stops: %s", (str(explained).partition("\n")[0],)
    return True
