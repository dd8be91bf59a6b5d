"""What a model would stop its training with is found on the meta device."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from retina_plugin import ConfigError, get_cfg, merge_config
from retina_plugin.engine import RetinaTrainer
from retina_plugin.engine.model_check import check_batch_norm, check_model, translate_batch_norm_error

from .small import make_cfg, make_image
from .tiny import tiny_config

P3_TO_P5 = (
    *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16.0], [32.0], [64.0]]),
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.BACKBONE.NAME"),
)


def three_levels(request, backbone, *opts):
    cfg = get_cfg()
    merge_config(cfg, str(request.config.rootpath / "configs" / "Base-RetinaNet.yaml"), [*P3_TO_P5, backbone, *opts])
    return cfg


def without_gradient(cfg):
    """By a real step."""
    model = build_model(cfg).train()
    with EventStorage():
        sum(model([make_image(0, 0, 2)]).values()).backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_levels_that_nothing_needs_stop_only_several_processes(request):
    cfg = three_levels(request, "build_retinanet_resnet_fpn_backbone")
    check_model(cfg)
    with pytest.raises(ConfigError) as error:
        check_model(cfg, num_processes=2)
    (line,) = error.value.problems
    unused = without_gradient(cfg)
    assert line.startswith(f"MODEL.RETINANET.IN_FEATURES is ['p3', 'p4', 'p5'], and {len(unused)} parameters")
    assert unused[0] in line and len(unused) == 4


@pytest.mark.parametrize(
    "opts", [(), ("MODEL.BACKBONE.FREEZE_AT", 5), ("MODEL.RETINANET.NORM", "BN"), ("MODEL.RESNETS.NORM", "BN")]
)
def test_a_pyramid_of_three_levels_trains_in_several_processes(request, opts):
    cfg = three_levels(request, "build_resnet_fpn_backbone", *opts)
    check_model(cfg, num_processes=2)
    assert not without_gradient(cfg)


def test_a_single_value_a_channel_is_found_by_the_sizes_of_the_images():
    """SmallPyramid's P5 has stride 32, and images are padded to multiples of 32."""
    sizes = ("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MAX_SIZE_TRAIN", 300)
    cfg = make_cfg("MODEL.FPN.NORM", "BN", *sizes)
    small, long = {"width": 500, "height": 500}, {"width": 500, "height": 1000}
    check_batch_norm(cfg, 1, [long, {"file_name": "of unknown size"}])
    check_batch_norm(cfg, 2, [long, small])
    check_batch_norm(make_cfg("MODEL.FPN.NORM", "FrozenBN", *sizes), 1, [small])
    check_batch_norm(make_cfg("MODEL.FPN.NORM", "BN", "INPUT.MIN_SIZE_TRAIN", (33,)), 1, [small])
    with pytest.raises(ConfigError, match=r"\[1, 16, 1, 1\].* from an image of 32x32 pixels"):
        check_batch_norm(cfg, 1, [long, small])
    with pytest.raises(ConfigError, match="an image of 32x32 pixels"):
        check_batch_norm(make_cfg("MODEL.FPN.NORM", "BN", "INPUT.MIN_SIZE_TRAIN", (64, 32)), 1, [small])
    unscaled = make_cfg("MODEL.FPN.NORM", "BN", "INPUT.MIN_SIZE_TRAIN", (0,))
    check_batch_norm(unscaled, 1, [small])
    with pytest.raises(ConfigError, match="an image of 20x30 pixels"):
        check_batch_norm(unscaled, 1, [small, {"width": 20, "height": 30}])


def test_it_is_what_the_step_raises():
    model = build_model(make_cfg("MODEL.FPN.NORM", "BN")).train()
    image = [make_image(0, 0, 1, size=(32, 32))]
    with pytest.raises(ValueError) as error, EventStorage():
        model(image)
    assert "norms without these statistics" in str(translate_batch_norm_error(error.value, "an image"))
    other = ValueError("something else")
    assert translate_batch_norm_error(other, "an image") is other


@pytest.fixture
def one_image_a_step(tmp_path):
    """Images of at most 100 x 60 pixels, scaled to at most 53 x 32: a single cell of P7."""
    batch_norm = ("MODEL.RETINANET.NORM", "BN", "DATASETS.TEST", (), "SOLVER.IMS_PER_BATCH", 1)
    yield lambda *opts: tiny_config(tmp_path, *batch_norm, "INPUT.MIN_SIZE_TRAIN", *opts)
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


def test_a_training_that_would_stop_does_not_start(one_image_a_step):
    with pytest.raises(ConfigError, match="alone in its micro-batch"):
        RetinaTrainer(one_image_a_step((32,)))


def test_sizes_that_are_known_only_in_the_step(one_image_a_step):
    trainer = RetinaTrainer(one_image_a_step((32, 32), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"))
    with pytest.raises(ConfigError, match="from an image of this step. Take more images a process"):
        trainer.train()
