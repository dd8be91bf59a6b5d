"""The family of losses that the kernels compute."""

from typing import NamedTuple


class SigmoidLossFamily(NamedTuple):
    r"""A loss of one anchor and one class, as a function of x_t (section 3.2 and appendix A).

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
