"""A RetinaNet on a ResNet-50, convolution by convolution, with the weights under whatever names they have.

A layer is named by what it does, for example ``("block", 4, 0, "3x3")`` or ``("tower", "cls", 2)``; a function finds
its weights. What the frameworks disagree about is an argument.
"""

from torch.nn import functional as F

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


def all_layers():
    """Every layer, and whether it has a norm (in place of a bias)."""
    yield ("stem",), True
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            for part in ("first", "3x3", "last", *(["shortcut"] if block == 0 else [])):
                yield ("block", stage, block, part), True
    for level in (3, 4, 5):
        yield ("lateral", level), False
        yield ("output", level), False
    yield ("p6",), False
    yield ("p7",), False
    for head in ("cls", "box"):
        for i in range(4):
            yield ("tower", head, i), False
        yield ("predictor", head), False


def predictions(find, pixels, *, stride_in_1x1, relu_before_p7):
    """
    Args:
        find: layer -> (weight, bias, scale, shift); those that it has not are None.
        pixels: (1, 3, H, W), normalized; H and W multiples of 32. P6 is made from C5.

    Returns:
        list of 5 pairs (1, A * K, Hl, Wl), (1, A * 4, Hl, Wl).
    """

    def conv(layer, x, stride=1):
        weight, bias, scale, shift = find(layer)
        x = F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)
        return x if scale is None else x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    x = F.max_pool2d(conv(("stem",), pixels, 2).relu(), 3, 2, 1)
    stages = {}
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            shortcut = conv(("block", stage, 0, "shortcut"), x, stride) if block == 0 else x
            first, middle = (stride, 1) if stride_in_1x1 else (1, stride)
            y = conv(("block", stage, block, "first"), x, first).relu()
            y = conv(("block", stage, block, "3x3"), y, middle).relu()
            x = (conv(("block", stage, block, "last"), y) + shortcut).relu()
        stages[stage] = x

    inner, levels = conv(("lateral", 5), stages[5]), {}
    levels[5] = conv(("output", 5), inner)
    for level in (4, 3):
        inner = conv(("lateral", level), stages[level]) + inner.repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels[level] = conv(("output", level), inner)
    levels[6] = conv(("p6",), stages[5], 2)
    levels[7] = conv(("p7",), levels[6].relu() if relu_before_p7 else levels[6], 2)

    results = []
    for level in range(3, 8):
        outputs = []
        for head in ("cls", "box"):
            x = levels[level]
            for i in range(4):
                x = conv(("tower", head, i), x).relu()
            outputs.append(conv(("predictor", head), x))
        results.append(outputs)
    return results


def our_name(layer):
    """Where this plugin keeps the weights of a layer; the norm's are in ``.norm``."""
    kind, *where = layer
    if kind == "stem":
        return "backbone.bottom_up.stem.conv1"
    if kind == "block":
        stage, block, part = where
        name = {"first": "conv1", "3x3": "conv2", "last": "conv3", "shortcut": "shortcut"}[part]
        return f"backbone.bottom_up.res{stage}.{block}.{name}"
    if kind in ("lateral", "output"):
        return f"backbone.fpn_{kind}{where[0]}"
    if kind in ("p6", "p7"):
        return f"backbone.top_block.{kind}"
    if kind == "tower":
        return f"head.{'cls' if where[0] == 'cls' else 'bbox'}_subnet.{2 * where[1]}"
    return {"cls": "head.cls_score", "box": "head.bbox_pred"}[where[0]]
