"""The family of losses that the fused kernels compute."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = tuple[float, float] | tuple[Tensor, Tensor]  # of positives and negatives: numbers, or (K,)


@dataclass(frozen=True)
class SigmoidLossFamily:
    r"""Computes the loss of one anchor and one class from x_t, elementwise (section 3.2 and appendix A).

    .. math:: L(x_t) = -(1 - q)^\gamma \log(q) / s, \quad q = \sigma(s x_t + b)

    ======================  ======================
    cross entropy           gamma = 0, s = 1, b = 0
    focal loss              s = 1, b = 0
    FL*                     gamma = 0
    ======================  ======================

    The kernels compute it from v = -(s x_t + b), with p = sigmoid(v) = 1 - q and softplus(v) = -log q:

    .. math:: L = p^\gamma softplus(v) / s, \quad -dL/dx_t = p^\gamma (p + \gamma (1 - p) softplus(v))
    """

    gamma: float = 0.0
    steepness: float = 1.0
    shift: float = 0.0

    def __call__(self, x_t: Tensor) -> Tensor:
        z = x_t if self.steepness == 1 and self.shift == 0 else self.steepness * x_t + self.shift
        loss = -F.logsigmoid(z)
        if self.gamma != 0:  # 1 - q from a log-sigmoid: value and gradient are finite for every finite x_t
            loss = loss * torch.exp(self.gamma * F.logsigmoid(-z))
        return loss if self.steepness == 1 else loss / self.steepness
