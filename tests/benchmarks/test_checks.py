"""What is not the same computation is refused."""

import pytest
import torch

from benchmarks import inference, matching, options, training
from benchmarks.case import Disagreement, copy_step, require_close


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_require_close(scale):
    """1e-5 of the largest magnitude."""
    expected = scale * torch.linspace(-1, 1, 11)
    require_close("x", expected + 0.9e-5 * scale, expected, 1e-5)
    with pytest.raises(Disagreement, match="x: differs from the reference by"):
        require_close("x", expected + 1.3e-5 * scale, expected, 1e-5)


def test_require_close_refuses_what_is_no_number_or_has_another_shape():
    with pytest.raises(Disagreement, match="nan"):
        require_close("x", torch.tensor([1.0, float("nan")]), torch.ones(2), 1e-5)
    with pytest.raises(Disagreement, match=r"shape \(3,\), but the reference has \(2,\)"):
        require_close("x", torch.ones(3), torch.ones(2), 1e-5)
    require_close("x", torch.ones(0), torch.ones(0), 1e-5)


def test_copy_step_copies():
    tensors = [torch.randn(3), torch.randn(2, 2)]
    before = [x.clone() for x in tensors]
    copy_step(tensors).run()
    assert all(torch.equal(x, y) for x, y in zip(tensors, before))


def case_of(module):
    return module.cases(options.parse(module, ["--quick"]))[0]


@pytest.fixture
def labels():
    case = case_of(matching)
    step = case.step(matching.DETECTRON2)
    return case, step.outcome(step.run())


def test_labels_and_boxes_of_anchors(labels):
    case, expected = labels
    positive = (expected["labels"] >= 0) & (expected["labels"] < matching.CLASSES)
    assert 0 < positive.sum() < positive.numel()
    case.check(matching.PLUGIN, expected, expected)

    # Only boxes of positive anchors have a meaning.
    other = expected["boxes"].clone()
    other[~positive] += 1
    case.check(matching.PLUGIN, {**expected, "boxes": other}, expected)
    other[positive.nonzero()[0].unbind()] += 1
    with pytest.raises(Disagreement, match="other boxes"):
        case.check(matching.PLUGIN, {**expected, "boxes": other}, expected)

    other = expected["labels"].clone()
    other[0, torch.randint(other.shape[1], ())] += 1
    with pytest.raises(Disagreement, match="of the labels"):
        case.check(matching.PLUGIN, {**expected, "labels": other}, expected)


@pytest.fixture
def detections():
    """Of two images."""
    corner = 100 * torch.rand(9, 2)
    return {
        "image": torch.tensor([0] * 5 + [1] * 4),
        "classes": torch.randint(80, (9,)),
        "boxes": torch.cat([corner, corner + 20 + 30 * torch.rand(9, 2)], dim=1),
    }


def test_detections_of_the_plain_setting_are_the_same(detections):
    case, impl = case_of(inference), "plugin, fp32"

    def check(expected=detections, **changes):
        case.check(impl, {**detections, **changes}, expected)

    order = torch.randperm(9)
    case.check(impl, {name: value[order] for name, value in detections.items()}, detections)
    largest = detections["boxes"].max()
    check(boxes=detections["boxes"] + 0.9e-4 * largest)
    with pytest.raises(Disagreement, match="lacks 9 and has 9 more"):
        check(boxes=detections["boxes"] + 1.2e-4 * largest)
    classes, image = detections["classes"].clone(), detections["image"].clone()
    classes[3] += 1
    image[4] += 1
    for change in ({"classes": classes}, {"image": image}):
        with pytest.raises(Disagreement, match="lacks 1 and has 1 more"):
            check(**change)
    for some in (slice(8), slice(0)):
        with pytest.raises(Disagreement, match="[08] detections, but the reference has 9"):
            case.check(impl, {name: value[some] for name, value in detections.items()}, detections)
        with pytest.raises(Disagreement, match="9 detections, but the reference has 8|the reference detects nothing"):
            case.check(impl, detections, {name: value[some] for name, value in detections.items()})
    one_for_another = {name: torch.cat([value[1:2], value[1:]]) for name, value in detections.items()}
    with pytest.raises(Disagreement, match="lacks 1 and has 0 more"):
        case.check(impl, one_for_another, detections)


def test_detections_of_the_fast_setting_are_mostly_the_same(detections):
    case, impl = case_of(inference), "plugin, fp32 fast"
    case.check(impl, detections, detections)
    with pytest.raises(Disagreement, match="finds 56% of what the reference detects, less than 90%"):
        case.check(impl, {name: value[:5] for name, value in detections.items()}, detections)
    moved = {"boxes": detections["boxes"] + 1000}
    for wrong in ({"classes": detections["classes"] + 1}, {"image": 1 - detections["image"]}, moved):
        with pytest.raises(Disagreement, match="finds 0%"):
            case.check(impl, {**detections, **wrong}, detections)


@pytest.mark.parametrize(
    ("impl", "allowed"), [("plugin, fp32", 1e-5), ("plugin, fp32 fast", 1e-2), ("Detectron2, bf16", 0.1)]
)
def test_losses_of_a_step(impl, allowed):
    case = case_of(training)
    expected = {"loss_cls": torch.tensor(1.5), "loss_box_reg": torch.tensor(0.2)}
    case.check(impl, {name: loss * (1 + 0.9 * allowed) for name, loss in expected.items()}, expected)
    for name in expected:
        with pytest.raises(Disagreement, match=name):
            case.check(impl, {**expected, name: expected[name] * (1 + 1.2 * allowed)}, expected)
