"""The training step: gradients of a batch that need not fit into memory at once, applied only if they are finite."""

import math
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import distributed as dist

from retina_plugin.core.rollback import Rollback
from retina_plugin.diagnostics.divergence import DivergenceWatch
from retina_plugin.diagnostics.step_diagnosis import StepSnapshot
from retina_plugin.engine.accumulation import add_gradients

# GradScaler starts at 2^16 and halves with every overflow. So many in a row are no search for the right scale.
MAX_OVERFLOWS = 20


class TrainingStep(SimpleTrainer):
    """Takes the place of Detectron2's ``SimpleTrainer`` and ``AMPTrainer``; its state has their form.

    - The batch goes through the model in ``SOLVER.ACCUMULATE_STEPS`` parts (:mod:`.accumulation`).
    - A step whose losses or gradients are not finite on some process is applied on none: weights, momentum and buffers
      stay as they are, and the learning rate goes on. :mod:`.divergence` reports it, and ends a training that has too
      many of them. An overflow that ``GradScaler`` is there for is no such step.
    - The host waits for a GPU once, with one small collective: losses, norm of the gradient and times come together.

    Logged on the main process, besides what Detectron2 logs: ``grad_norm``, the norm of all gradients as one vector,
    before they are clipped (Detectron2 clips those of each parameter by themselves); ``skipped_steps``, how many steps
    of the run were not applied so far, where there are any.
    """

    def __init__(self, trainer, cfg):
        """
        Args:
            trainer: a ``SimpleTrainer`` of Detectron2, whose model, data and optimizer this one takes over.
            cfg: the configuration of the run.
        """
        vars(self).update(vars(trainer))  # with the iterator over the data, which may have workers already
        amp = cfg.SOLVER.AMP
        self.precision = amp.PRECISION if amp.ENABLED else "fp32"
        # Detectron2 makes one for every AMP; only fp16 needs it.
        self.grad_scaler = trainer.grad_scaler if self.precision == "fp16" else None
        self.num_parts = cfg.SOLVER.ACCUMULATE_STEPS
        self._rollback = Rollback(self.model)
        self._watch = DivergenceWatch(cfg)
        self._overflows = self._skipped = 0

    def run_step(self):
        """Run one step.

        Raises:
            DivergenceError: on all processes alike.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        # Before forward, at whose end all activations are in memory as well.
        self.optimizer.zero_grad()
        self._rollback.remember()
        scaler = self.grad_scaler
        scale_loss = None if scaler is None else scaler.scale
        result = add_gradients(self.model, batch, self.num_parts, precision=self.precision, scale_loss=scale_loss)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        values = self._values_of_all_processes(result, batch, data_time)

        losses_are_finite = all(math.isfinite(row[name]) for row in values for name in result.losses)
        is_applied = losses_are_finite and all(math.isfinite(row["grad_norm"]) for row in values)
        if is_applied:
            self.optimizer.step()
            self._overflows = 0
            if scaler is not None:
                scaler.update()
        else:
            self._skip(batch, result, values, losses_are_finite)
        if comm.is_main_process():
            self._write(values, result.losses, is_applied)

    def _values_of_all_processes(self, result, batch, data_time):
        """For every process a dict name -> float. The host waits here, and nowhere else in the step."""
        scalars = dict(result.losses)
        if result.num_positives is not None:
            scalars["num_pos_anchors"] = result.num_positives / len(batch)
        scalars["grad_norm"] = self._grad_norm(scalars)
        scalars["data_time"] = scalars["grad_norm"].new_full((), data_time)
        row = torch.stack([x.float() for x in scalars.values()])
        rows = row[None]
        if comm.get_world_size() > 1:
            rows = row.new_zeros(comm.get_world_size(), len(row))
            rows[comm.get_rank()] = row
            dist.all_reduce(rows)
        return [dict(zip(scalars, row)) for row in rows.tolist()]

    def _grad_norm(self, scalars):
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not gradients:
            return torch.zeros_like(next(iter(scalars.values())))
        return torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).norm()

    def _skip(self, batch, result, values, losses_are_finite):
        """Leave everything but the scale of the loss as it was before the step."""
        scaler = self.grad_scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        if scaler is not None:
            # A loss that is not finite says nothing about the scale.
            scaler.update(None if losses_are_finite else scale)
        self._skipped += 1
        self._overflows += 1
        self.optimizer.zero_grad()
        self._rollback.put_back()
        if scaler is not None and losses_are_finite and self._overflows <= MAX_OVERFLOWS:
            return
        step = StepSnapshot(
            iteration=self.iter,
            batch=batch,
            num_parts=self.num_parts,
            precision=self.precision,
            loss_scale=scale,
            divisor=None if result.divisor is None else result.divisor.item(),
            random_state=self._rollback.random_state,
        )
        names = (*result.losses, "grad_norm")
        self._watch.report(
            self.model,
            step,
            [{name: row[name] for name in names} for row in values],
            max(group["lr"] for group in self.optimizer.param_groups),
        )

    def _write(self, values, losses, is_applied):
        storage = get_event_storage()
        storage.put_scalar("data_time", max(row.pop("data_time") for row in values))
        if self._skipped:
            storage.put_scalar("skipped_steps", self._skipped, smoothing_hint=False)
        if not is_applied:
            return
        means = {name: sum(row[name] for row in values) / len(values) for name in values[0]}
        storage.put_scalar("total_loss", sum(means[name] for name in losses))
        storage.put_scalars(**{name: mean for name, mean in means.items() if name != "total_loss"})

    def state_dict(self):
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
