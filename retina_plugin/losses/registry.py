"""The registry of classification losses, and what its entries promise.

An entry is a function ``f(cfg) -> nn.Module``, registered under the name that
``MODEL.RETINANET.CLS_LOSS`` selects. The module is called once for all levels:

    loss = module(logits, labels, decode_boxes, normalizer)

================  ================================================================================
``logits``        list of L float tensors, (N, Hl, Wl, A, K): views of the head's output, in
                  whatever memory order it has. A kernel that cares looks at the strides; nothing
                  is copied for it.
``labels``        list of L integer tensors, (N, Hl, Wl, A): 0..K-1 a class, K background, -1
                  ignored.
``decode_boxes``  function without arguments, for losses that look at boxes; the others pay
                  nothing for it. Returns a list of L float32 tensors, (N, Hl, Wl, A, 4): the
                  predicted boxes, XYXY in pixels, without gradient.
``normalizer``    0-dim float32 tensor > 0, without gradient; see
                  :class:`retina_plugin.losses.LossNormalizer`.
``loss``          0-dim float32 tensor: the sum over images, anchors and classes, divided by
                  ``normalizer``.
================  ================================================================================

N images, L levels, A anchors a cell, K classes.
"""

from fvcore.common.registry import Registry

CLASSIFICATION_LOSS_REGISTRY = Registry("CLASSIFICATION_LOSS")


def build_classification_loss(cfg):
    """Build the loss that ``cfg.MODEL.RETINANET.CLS_LOSS`` names.

    Raises:
        KeyError: no loss of that name is registered.
        ValueError: a parameter of the loss is out of its range, or not a number.
    """
    build = CLASSIFICATION_LOSS_REGISTRY.get(cfg.MODEL.RETINANET.CLS_LOSS)
    try:
        return build(cfg)
    except TypeError as error:  # the configuration system lets null stand for a number
        raise ValueError(f"MODEL.RETINANET.CLS_LOSS {cfg.MODEL.RETINANET.CLS_LOSS}: {error}") from error
