"""The training step: gradients of a batch that need not fit into memory at once, applied only if they are finite."""

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch import distributed as dist

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.rollback import Rollback
from retina_plugin.diagnostics.divergence import NONFINITE_BUFFER_VALUES, DivergenceMonitor, warn_of_bad_buffers
from retina_plugin.diagnostics.snapshot import StepSnapshot
from retina_plugin.modeling.gradients import Batch, StepResult, compute_gradients

# GradScaler starts at 2^16 and halves with every overflow. So many in a row are no search for the right scale.
MAX_OVERFLOWS = 20


class TrainingStep(SimpleTrainer):
    """Takes the place of Detectron2's ``SimpleTrainer`` and ``AMPTrainer``; its state has their form.

    - The batch is computed in ``SOLVER.ACCUMULATE_STEPS`` micro-batches (:mod:`retina_plugin.modeling.gradients`).
    - A step whose losses, gradients or buffers (statistics of norms) are not finite on some rank is applied on none:
      weights, momentum and buffers stay as they are, and the learning rate goes on.
      :mod:`retina_plugin.diagnostics.divergence` reports it, and ends a training that has too many of them. An overflow
      that ``GradScaler`` is there for does not count.
    - The host waits for a GPU once, with one small collective: losses, norm of the gradient, buffers, positives and
      times come together.

    Logged on the main rank, besides what Detectron2 logs: ``grad_norm``, the norm of all gradients as one vector,
    before they are clipped (Detectron2 clips each parameter's by itself); every ``LOG_PERIOD`` iterations
    ``num_pos_anchors_LEVEL``, its own positive anchors per image; ``skipped_steps``, how many steps of the run were not
    applied so far, if any.
    """

    def __init__(self, model: nn.Module, data_loader: Iterable[Batch], optimizer: torch.optim.Optimizer, cfg: CfgNode):
        """
        Raises:
            ConfigError: the assigner looks at predictions, which micro-batches would see one after the other.
        """
        super().__init__(model, data_loader, optimizer)
        self.precision = cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32"
        # Disabled without a GPU, where it would warn.
        scaler = torch.amp.GradScaler("cuda", enabled=torch.cuda.is_available())
        self.grad_scaler = scaler if self.precision == "fp16" else None
        self.num_micro_batches = cfg.SOLVER.ACCUMULATE_STEPS
        self._detector: Any = getattr(model, "module", model)
        if self.num_micro_batches > 1 and not getattr(self._detector, "assigns_before_forward", True):
            raise ConfigError([
                f"SOLVER.ACCUMULATE_STEPS is {self.num_micro_batches}, but MODEL.RETINANET.ASSIGNER "
                f"{cfg.MODEL.RETINANET.ASSIGNER} looks at predictions, so that positives cannot be counted before the "
                "first micro-batch. Set it to 1"
            ])  # fmt: skip
        self._log_period = cfg.LOG_PERIOD
        self._rollback = Rollback(model)
        self._monitor = DivergenceMonitor(cfg)
        self._overflows = self._skipped = 0
        self._has_run = False

    def run_step(self) -> None:
        """Run one step.

        Raises:
            DivergenceError: on all ranks alike.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if not self._has_run:
            warn_of_bad_buffers(self._detector)
            self._has_run = True
        # Before forward, at whose end all activations are in memory as well.
        self.optimizer.zero_grad()
        self._rollback.save()
        scaler = self.grad_scaler
        result = compute_gradients(
            self.model,
            batch,
            self.num_micro_batches,
            precision=self.precision,
            scale_loss=None if scaler is None else scaler.scale,
        )
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        rows = self._gather_scalars(result, batch, data_time)

        forward_is_finite = all(math.isfinite(row[name]) for row in rows for name in result.losses)
        forward_is_finite &= not any(row[NONFINITE_BUFFER_VALUES] for row in rows)
        is_applied = forward_is_finite and all(math.isfinite(row["grad_norm"]) for row in rows)
        if is_applied:
            self.optimizer.step()
            self._overflows = 0
            if scaler is not None:
                scaler.update()
        else:
            self._skip(batch, result, rows, forward_is_finite)
        if comm.is_main_process():
            self._log(rows, result, is_applied)

    def _gather_scalars(self, result: StepResult, batch: Batch, data_time: float) -> list[dict[str, float]]:
        """For every rank the scalars of its step by name. The host waits here, and nowhere else in the step."""
        scalars = dict(result.losses)
        if result.num_positives is not None:
            counts = result.num_positives / len(batch)
            scalars["num_pos_anchors"] = counts.sum()
            names = self._detector.head_in_features
            scalars.update({f"num_pos_anchors_{name}": count for name, count in zip(names, counts)})
        scalars["grad_norm"] = self._grad_norm(scalars)
        scalars[NONFINITE_BUFFER_VALUES] = self._rollback.count_nonfinite().to(scalars["grad_norm"].device)
        scalars["data_time"] = scalars["grad_norm"].new_full((), data_time)
        row = torch.stack([x.float() for x in scalars.values()])
        rows = row[None]
        if comm.get_world_size() > 1:
            rows = row.new_zeros(comm.get_world_size(), len(row))
            rows[comm.get_rank()] = row
            dist.all_reduce(rows)
        return [dict(zip(scalars, row)) for row in rows.tolist()]

    def _grad_norm(self, scalars: dict[str, Tensor]) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not gradients:
            return torch.zeros_like(next(iter(scalars.values())))
        return torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).norm()

    def _skip(self, batch: Batch, result: StepResult, rows: list[dict[str, float]], forward_is_finite: bool) -> None:
        """Leave everything but the scale of the loss as it was before the step."""
        scaler = self.grad_scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        if scaler is not None:
            # A loss or statistic that is not finite says nothing about the scale.
            scaler.update(None if forward_is_finite else scale)
        self._skipped += 1
        self._overflows += 1
        self.optimizer.zero_grad()
        self._rollback.restore()
        if scaler is not None and forward_is_finite and self._overflows <= MAX_OVERFLOWS:
            return
        snapshot = StepSnapshot(
            iteration=self.iter,
            batch=batch,
            num_micro_batches=self.num_micro_batches,
            precision=self.precision,
            loss_scale=scale,
            divisor=None if result.divisor is None else float(result.divisor),
            random_state=self._rollback.random_state,
        )
        names = (*result.losses, "grad_norm", NONFINITE_BUFFER_VALUES)
        values = [{name: row[name] for name in names} for row in rows]
        self._monitor.report(
            self._detector, snapshot, values, max(group["lr"] for group in self.optimizer.param_groups)
        )

    def _log(self, rows: list[dict[str, float]], result: StepResult, is_applied: bool) -> None:
        storage = get_event_storage()
        storage.put_scalar("data_time", max(row.pop("data_time") for row in rows))
        for row in rows:
            row.pop(NONFINITE_BUFFER_VALUES)
        if self._skipped:
            storage.put_scalar("skipped_steps", self._skipped, smoothing_hint=False)
        if not is_applied:
            return
        of_levels = {name: value for name, value in rows[0].items() if name.startswith("num_pos_anchors_")}
        if self._log_period > 0 and (storage.iter + 1) % self._log_period == 0:
            storage.put_scalars(**of_levels, smoothing_hint=False)
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name not in of_levels}
        storage.put_scalar("total_loss", sum(means[name] for name in result.losses))
        storage.put_scalars(**{name: mean for name, mean in means.items() if name != "total_loss"})

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
