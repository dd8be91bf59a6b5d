"""Detectron2's ``DefaultTrainer`` with runs that are resumed exactly, and stopped with a checkpoint.

A run that was killed or stopped, and is resumed, computes what it would have computed: the checkpoint has the place in
the training stream (:mod:`retina_plugin.data.loader`), every iteration seeds the random generators itself, and the
hooks that a checkpoint was written before are run when it is resumed.
"""

import itertools
import logging

from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.utils import comm

from retina_plugin.checkpoint import CheckpointError
from retina_plugin.core.comm import any_rank
from retina_plugin.core.errors import TrainingDataError
from retina_plugin.core.rng import seed_all
from retina_plugin.data.loader import ResumableTrainLoader
from retina_plugin.engine import resume as resuming
from retina_plugin.engine import signals as interruption


class ResumableTrainer(DefaultTrainer):
    """Trains on a :class:`ResumableTrainLoader`; with another loader, the order of the data starts anew."""

    # Of the random numbers of the iterations; drawn when training starts, or from the checkpoint.
    _seed = None
    # The exception with which the training ends after the current iteration, the same in all processes.
    stop_reason = None
    # Whether all hooks have seen the iteration that a checkpoint is of; a checkpoint is written by one of the first.
    _hooks_done = True
    # What a checkpoint has of the metrics before it, until the training starts; None if this run is a new one.
    _metrics_before = None

    def resume_or_load(self, resume=True):
        """Go on with the run in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``; see ``DefaultTrainer``.

        Raises:
            CheckpointError: the weights cannot be used, or the last checkpoint is missing or broken.
        """
        path = resuming.find_checkpoint(self.checkpointer) if resume else None
        try:
            super().resume_or_load(resume=resume)
        except CheckpointError as error:
            raise (resuming.explain(error, self.checkpointer) if path else error) from error.__cause__
        logger = logging.getLogger(__name__)
        if resume:
            self._metrics_before = self._metrics_before or {}
        if resume and path is None:
            logger.warning(
                "Nothing to resume in %s: training starts at iteration 0 from MODEL.WEIGHTS '%s'.",
                *(self.cfg.OUTPUT_DIR, self.cfg.MODEL.WEIGHTS),
            )
        elif path is not None and self.start_iter >= self.max_iter:
            logger.warning(
                "%s is of a training that is complete (%d of %d iterations): nothing is left but its evaluation.",
                *(path, self.start_iter, self.max_iter),
            )
        elif path is not None:
            logger.info("Resumed from %s at iteration %d of %d.", path, self.start_iter, self.max_iter)

    def train(self):
        """Train until ``SOLVER.MAX_ITER``.

        Returns:
            dict: of ``DefaultTrainer.train``.

        Raises:
            TrainingInterrupted: a signal has stopped it, with a checkpoint; a ``KeyboardInterrupt``.
            TrainingDataError: too many images cannot be read.
        """
        if self._seed is None:
            self._seed = comm.shared_random_seed()
        with interruption.catch_signals():
            try:
                return super().train()
            except interruption.EvaluationInterrupted:  # after the last iteration
                comm.synchronize()
                raise interruption.TrainingInterrupted(
                    "Stopped in the final evaluation. The training is complete; --resume evaluates it"
                ) from None
            except interruption.TrainingInterrupted:
                comm.synchronize()  # a launcher ends all processes as soon as one has ended so
                raise

    def before_train(self):
        super().before_train()
        if self._metrics_before is not None:
            # An iteration whose evaluation was not done is done to its end.
            hooks_left = [] if self._hooks_done else _from_evaluation_on(self._hooks)
            first_written = self.start_iter - (not self._hooks_done)
            for hook in self._hooks:
                for writer in hook._writers if isinstance(hook, hooks.PeriodicWriter) else ():
                    resuming.cut_metrics(writer, first_written)
            resuming.restore_metrics(self.storage, self._metrics_before)
            self._metrics_before = None
            self.iter = self.storage.iter = self.start_iter - 1
            self._run_hooks(hook.after_step for hook in hooks_left)
            self.iter = self.storage.iter = self.start_iter

    def before_step(self):
        seed_all(self._seed, self.iter, comm.get_rank())
        super().before_step()

    def after_step(self):
        self.stop_reason = self._reason_to_stop()
        self._run_hooks([super().after_step])
        if self.stop_reason and self.iter + 1 < self.max_iter:
            self._save_and_raise(self.stop_reason)

    def after_train(self):
        self.iter = min(self.iter, self.max_iter)  # Detectron2 counts one more where nothing was left to train
        super().after_train()

    def _reason_to_stop(self):
        """What all processes stop for after this iteration: an exception, or None."""
        stream = self.data_loader if isinstance(self.data_loader, ResumableTrainLoader) else None
        signal_name, reports = interruption.signal_received(), stream.take_reports() if stream else []
        stop = None
        if any_rank(signal_name or reports):
            everyone = comm.all_gather((signal_name, reports))
            signal_name = next((name for name, _ in everyone if name), None)
            if signal_name:
                stop = interruption.TrainingInterrupted(signal_name)
            elif stream:
                for _, reports in everyone:
                    stream.unreadable.add(reports)
                try:
                    stream.unreadable.check()
                except TrainingDataError as error:
                    stop = error
        if stream and len(stream.unreadable):
            self.storage.put_scalar("unreadable_images", len(stream.unreadable), smoothing_hint=False)
        return stop

    def _run_hooks(self, calls):
        self._hooks_done = False
        try:
            for call in calls:
                call()
        except interruption.EvaluationInterrupted:
            self.model.train()  # Detectron2 does it at the end of an evaluation alone
            self._save_and_raise(interruption.TrainingInterrupted("a signal, in the evaluation"))
        self._hooks_done = True

    def _save_and_raise(self, error):
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        comm.synchronize()  # until it is written
        logging.getLogger(__name__).warning(
            "%s: stopped at iteration %d of %d. The checkpoint is written; --resume goes on from it.",
            *(error, self.iter + 1, self.max_iter),
        )
        raise error

    # Detectron2 0.6 writes neither optimizer nor gradient scaler into its checkpoints, so that a resumed run would
    # start with zero momentum. Main writes both, under the name used here.

    def state_dict(self):
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "streams": [stream.state_dict() for stream in self._streams()],
            "seed": self._seed,
            "hooks_done": self._hooks_done,
            "metrics": resuming.metrics_state(self.storage) if hasattr(self, "storage") else {},
            "config": self.cfg.dump(),
        }

    def load_state_dict(self, state_dict):
        logger = logging.getLogger(__name__)
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" not in state_dict:
            logger.warning("The checkpoint has no optimizer state (Detectron2 0.6 wrote it): momentum starts at zero.")
        # What the checkpoint lacks stays as it is, such as the gradient scaler of a run resumed with AMP.
        self._trainer.load_state_dict({**self._trainer.state_dict(), **state_dict.get("_trainer", {})})
        streams, states = self._streams(), state_dict.get("streams", [])
        if not streams or not states:
            who = "checkpoint" if streams else "data loader of this trainer"
            logger.warning("The order of the training images starts anew: the %s does not keep it.", who)
        for stream, state in zip(streams, states):
            stream.load_state_dict(state)
        self._seed = state_dict.get("seed", self._seed)
        self._hooks_done = state_dict.get("hooks_done", True)
        self._metrics_before = state_dict.get("metrics")
        if "config" in state_dict:
            resuming.warn_of_differences(state_dict["config"], self.cfg)

    def _streams(self):
        """The training's, and that of precise batch normalization if there is one."""
        loaders = [self.data_loader]
        loaders += [getattr(hook, "_data_loader", None) for hook in self._hooks if isinstance(hook, hooks.PreciseBN)]
        return [loader for loader in loaders if isinstance(loader, ResumableTrainLoader)]


def _from_evaluation_on(all_hooks):
    return list(itertools.dropwhile(lambda hook: not isinstance(hook, hooks.EvalHook), all_hooks))
