"""What every loss on sigmoid outputs shares: x_t and the weight alpha (section 3).

A class is one binary problem, and an anchor answers K of them; the paper's classifier has no softmax over classes and
no background class, and neither has any loss here.
"""

import numbers

import torch


def signed_logits(logits, labels):
    """x_t = y x of every counted anchor and class, where y is 1 for the anchor's own class and -1 for the others.

    Args:
        logits: float tensor (..., K). Half precision becomes float32.
        labels: integer tensor (...): 0..K-1 a class, K background, -1 ignored.

    Returns:
        x_t: (V, K), the V anchors that are not ignored; p_t = sigmoid(x_t).
        is_class: bool (V, K), where y is 1.
    """
    counted = labels >= 0
    logits, labels = logits[counted], labels[counted]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    is_class = labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)
    return torch.where(is_class, logits, -logits), is_class


def balance(loss, is_class, alpha):
    """Multiply by alpha_t: alpha where y is 1, 1 - alpha where it is -1 (section 3.1).

    Args:
        loss: (V, K).
        is_class: bool (V, K), of :func:`signed_logits`.
        alpha: see :func:`alpha_weights`.

    Raises:
        ValueError: see :func:`alpha_weights`.
    """
    if alpha is None:
        return loss
    positive, negative = alpha_weights(alpha, loss)
    return torch.where(is_class, positive * loss, negative * loss)


def alpha_weights(alpha, like):
    """What positives and negatives weigh: alpha and 1 - alpha (section 3.1).

    Args:
        alpha: weight of the positive class, in [0, 1]: a number, or K of them (a sequence or a tensor). None: off,
            every weight is 1.
        like: float tensor (..., K) whose precision (float32 at least) and device weights of K classes take.

    Returns:
        Two numbers, or two tensors (K,).

    Raises:
        ValueError: a weight outside [0, 1] (not checked in a tensor), or not K of them.
    """
    if alpha is None:
        return 1.0, 1.0
    if not isinstance(alpha, torch.Tensor):
        check_alpha(alpha)
    if isinstance(alpha, numbers.Real):
        return float(alpha), 1.0 - float(alpha)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    alpha = torch.as_tensor(alpha, dtype=dtype, device=like.device)
    if alpha.shape not in ((), like.shape[-1:]):
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}: give one number, or one for each of {like.shape[-1]} classes"
        )
    alpha = alpha.expand(like.shape[-1]).contiguous()
    return alpha, 1 - alpha


def check_alpha(alpha):
    """Raise ``ValueError`` unless alpha is None, a number in [0, 1] or a sequence or tensor of such numbers."""
    if alpha is None:
        return
    if isinstance(alpha, numbers.Real):  # at every step: no tensor for it
        weights = [alpha]
    else:
        weights = torch.as_tensor(alpha, dtype=torch.float64, device="cpu").flatten().tolist()
    wrong = [weight for weight in weights if not 0 <= weight <= 1]
    if wrong:
        raise ValueError(
            f"alpha weighs the positive class and lies in [0, 1], got {', '.join(map(str, wrong))} "
            "(off is None, and -1.0 in a configuration)"
        )


def alpha_from_config(cfg):
    """The weight of the positive class that a configuration asks for.

    ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS`` has K numbers, or is empty: then the one number
    ``FOCAL_LOSS_ALPHA`` holds for every class. There, -1.0 is Detectron2's way to say "off", and YAML's null says
    so as well.

    Returns:
        None (off), a number, or a list of K numbers.

    Raises:
        ValueError: another negative number, or not as many as classes.
    """
    per_class, alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS, cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
    if not per_class:
        return None if alpha is None or alpha == -1 else alpha
    if len(per_class) != cfg.MODEL.RETINANET.NUM_CLASSES:
        raise ValueError(
            f"MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS has {len(per_class)} numbers for the "
            f"{cfg.MODEL.RETINANET.NUM_CLASSES} classes of MODEL.RETINANET.NUM_CLASSES; give one a class, in their "
            "order, or none"
        )
    return list(per_class)
