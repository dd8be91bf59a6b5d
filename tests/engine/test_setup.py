"""The configuration of a job, before any process is started."""

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone

from retina_plugin import ConfigError
from retina_plugin.engine import load_config


def load(request, *opts):
    config = str(request.config.rootpath / "configs" / "digits.yaml")
    args = default_argument_parser().parse_args(["--config-file", config])
    args.opts = list(opts)
    return load_config(args)


def test_falls_back_to_the_cpu_and_is_frozen(request):
    cfg = load(request)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert cfg.MODEL.DEVICE == expected
    assert cfg.is_frozen()


def test_what_a_part_refuses_is_an_error_of_the_configuration(request):
    with pytest.raises(ConfigError, match="the model cannot be built: prior_prob"):
        load(request, "MODEL.RETINANET.PRIOR_PROB", 1.5)


def test_a_backbone_that_computes_while_it_is_built_is_left_alone(request):
    """As those that derive a rate for each block from torch.linspace."""

    @BACKBONE_REGISTRY.register()
    def build_computing_backbone(cfg, input_shape):
        assert [x.item() for x in torch.linspace(0, 0.1, 3)]
        return build_resnet_backbone(cfg, input_shape)

    levels = ["res3", "res4", "res5"]
    opts = ["MODEL.BACKBONE.NAME", "build_computing_backbone", "MODEL.RETINANET.IN_FEATURES", levels]
    load(request, *opts, "MODEL.ANCHOR_GENERATOR.SIZES", [[32]])
