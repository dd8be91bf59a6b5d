"""torchvision's ``retinanet_resnet50_fpn_v2`` before and after, as in test_convert_torchvision.py."""

import torch
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from benchmarks import models, torchvision_model

from .converted import IMAGENET_RGB, convert_file, load_converted, read_config
from .test_convert_torchvision import SIZE, compare

NETWORK = (*IMAGENET_RGB, "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RETINANET.NUM_CLASSES", 6)


@torch.no_grad()
def make_source():
    """torchvision's model with lively weights: batch norms, group norms with parameters of their own."""
    model = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=6).eval()
    model.transform.min_size, model.transform.max_size = (min(SIZE),), max(SIZE)
    state = models.weights(NETWORK)
    backbone = {k: v for k, v in torchvision_model.renamed(state).items() if k.startswith("backbone.")}
    for part in ("weight", "bias"):
        backbone[f"backbone.fpn.extra_blocks.p6.{part}"] = state[f"backbone.top_block.p6.{part}"]
    assert model.load_state_dict(backbone, strict=False).unexpected_keys == []
    for name, p in model.head.named_parameters():
        if ".conv." in name and p.dim() == 1:
            p.uniform_(0.5, 1.5) if name.endswith("weight") else p.normal_(std=0.3)
    pixels = torch.randn(1, 3, *SIZE)
    outputs = model.head(list(model.backbone(torch.nn.functional.pad(pixels, (0, 18, 0, 10))).values()))
    model.head.classification_head.cls_logits.weight.div_(outputs["cls_logits"].std())
    model.head.regression_head.bbox_reg.weight.mul_(0.3 / outputs["bbox_regression"].std())
    model.head.classification_head.cls_logits.bias.fill_(-5.5)
    return model.double()


def test_resnet50(tmp_path):
    source = make_source()
    state = source.state_dict()
    stem, output = convert_file(tmp_path, state)
    assert f"{len(state)} weights of torchvision_v2 became" in output
    cfg = read_config(stem)
    assert cfg.MODEL.RETINANET.NORM == "GN" and cfg.MODEL.RETINANET.NUM_CONVS == 4
    assert cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE == "res5" and cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE == "giou"
    ours = load_converted(stem)
    biases = [f"head.{subnet}.{3 * i}.bias" for subnet in ("cls_subnet", "bbox_subnet") for i in range(4)]
    assert all((ours.state_dict()[name] == 0).all() for name in biases)
    print(f"torchvision v2: {len(state)} weights -> {len(ours.state_dict()) - 1}, of which {len(biases)} new zeros")
    compare("torchvision v2 R-50", source, stem, list(range(6)))
