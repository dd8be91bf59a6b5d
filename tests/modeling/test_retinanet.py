"""The detector as a whole: inputs, precision, visualization."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from retina_plugin import add_retina_config


def make_model(*opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.merge_from_file("configs/Base-RetinaNet.yaml")
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
        + ["MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.PIXEL_STD", [58.0, 57.0, 57.0], *opts]
    )
    return build_model(cfg)


def make_input(classes=(), boxes=None):
    instances = Instances((90, 120))
    boxes = torch.tensor([[10.0, 10.0, 60.0, 70.0]] * len(classes)) if boxes is None else boxes
    instances.gt_boxes = Boxes(boxes.reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    return {"image": image, "instances": instances, "file_name": "street.jpg"}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize("classes", [(4,), (0, -1), (1, 99)])
def test_a_class_that_does_not_exist_is_named_with_its_image(classes):
    with EventStorage(), pytest.raises(ValueError, match=r"street\.jpg.*class.*NUM_CLASSES is 4"):
        make_model()([make_input(), make_input(classes)])


def test_training_without_ground_truth_is_refused():
    with EventStorage(), pytest.raises(ValueError, match=r"street\.jpg.*instances"):
        make_model()([{k: v for k, v in make_input().items() if k != "instances"}])


@pytest.mark.parametrize("normalizer", ["ema", "positives", "positives_global"])
def test_images_without_boxes_train_as_negatives(normalizer):
    model = make_model("MODEL.RETINANET.LOSS_NORMALIZER", normalizer)
    with EventStorage() as storage:
        losses = model([make_input(), make_input()])
    assert losses["loss_cls"] > 0 and losses["loss_box_reg"] == 0
    assert storage.latest()["num_pos_anchors"][0] == 0
    sum(losses.values()).backward()
    assert model.head.cls_score.bias.grad.abs().sum() > 0
    assert (model.head.bbox_pred.bias.grad == 0).all()


def test_a_box_that_no_anchor_touches_leaves_finite_losses():
    inputs = [make_input((0,), torch.tensor([[5000.0, 5000.0, 5010.0, 5010.0]])), make_input((1,))]
    with EventStorage():
        losses = make_model()(inputs)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_autocast_gives_float32_losses_close_to_those_of_float32():
    model, inputs = make_model("MODEL.RETINANET.LOSS_NORMALIZER", "positives"), [make_input((0, 2))]
    with EventStorage():
        expected = model(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(inputs)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.05, atol=0)


@torch.no_grad()
def test_detections_come_in_the_size_that_is_asked_for():
    model = make_model("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0).eval()
    image = make_input()["image"]
    (plain,) = model([{"image": image}])
    (doubled,) = model([{"image": image, "height": 180, "width": 240}])
    assert plain["instances"].image_size == (90, 120) and doubled["instances"].image_size == (180, 240)
    assert len(plain["instances"]) == 100
    torch.testing.assert_close(
        doubled["instances"].pred_boxes.tensor, 2 * plain["instances"].pred_boxes.tensor, rtol=1e-5, atol=1e-3
    )
    boxes = plain["instances"].pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([120, 90, 120, 90])).all()


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_vis_period_draws_ground_truth_and_detections(image_format):
    model = make_model("VIS_PERIOD", 2, "INPUT.FORMAT", image_format, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    drawn, inputs = {}, [make_input((0,)), make_input((1, 2))]
    with EventStorage() as storage:
        for step in range(4):
            model(inputs)
            assert model.training
            drawn[step] = [image for _, image, _ in storage._vis_data]
            storage.clear_images()
            storage.step()
    assert [len(drawn[step]) for step in range(4)] == [1, 0, 1, 0]
    image = torch.as_tensor(drawn[0][0])  # (3, 2 * height, width): ground truth above, detections below
    assert image.shape[0] == 3 and image.shape[1] % 2 == 0
    above, below = image.chunk(2, dim=1)
    assert (above != below).any()


def test_custom_parts_by_keyword():
    """Every part is an argument: a detector without configuration, with a loss of one's own."""
    reference = make_model()

    class CountLabels(torch.nn.Module):
        def forward(self, logits, targets, context, normalizer):
            labels = targets.labels_by_level(logits)
            assert [x.shape[:4] for x in logits] == [y.shape for y in labels]
            assert [x.shape for x in context.decode_boxes()] == [(*y.shape, 4) for y in labels]
            return (sum((y == 3).sum() for y in labels) + 0 * sum(x.sum() for x in logits)) / normalizer

    model = type(reference)(
        backbone=reference.backbone,
        head=reference.head,
        head_in_features=reference.head_in_features,
        anchor_generator=reference.anchor_generator,
        num_classes=4,
        assigner=reference.assigner,
        classification_loss=CountLabels(),
        box_coder=reference.box_coder,
        box_loss=reference.box_loss,
        loss_normalizer=reference.loss_normalizer,
        postprocessor=reference.postprocessor,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    with EventStorage() as storage:
        losses = model([make_input((3,))])
    positives = storage.latest()["num_pos_anchors"][0]
    assert positives > 0
    assert (losses["loss_cls"] * model.loss_normalizer.ema).item() == pytest.approx(positives)


def test_thresholds_of_other_models_are_a_warning_where_a_model_is_built(caplog):
    """What Detectron2's ``demo.py`` sets for every model."""
    thresholds = (
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        0.53,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        0.53,
    )
    for _ in range(2):
        make_model(*thresholds, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.53)
    (record,) = [record for record in caplog.records if "belongs to R-CNN" in record.getMessage()]
    assert record.getMessage().startswith("MODEL.ROI_HEADS.SCORE_THRESH_TEST is set to 0.53")


def test_trains_in_a_loop_without_an_event_storage():
    model, batch = make_model("VIS_PERIOD", 1), [make_input((3,))]
    with EventStorage():
        within = copy.deepcopy(model)(batch)
    without = model(batch)
    assert without == within
    sum(without.values()).backward()
