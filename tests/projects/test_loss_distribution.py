"""The project that draws where the focal loss comes from (figure 4 of the paper)."""

import itertools
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from retina_plugin import add_retina_config
from retina_plugin.config.imports import import_modules
from retina_plugin.losses import sigmoid_focal_loss

FOLDER = "projects/LossDistribution"
SIZES = [(64, 64), (96, 70), (65, 90), (80, 80)]  # width, height
SHORT_SIDE = 64  # of the images that the model sees
DATASET = "loss_distribution_test"


@pytest.fixture(scope="module")
def project(request):
    (module,) = import_modules([str(request.config.rootpath / FOLDER / "loss_distribution" / "analysis.py")])
    return module


def write_coco(root, boxes):
    """COCO's validation set in miniature; ``boxes`` are XYWH, a list an image. Returns its JSON file."""
    folder = root / "coco" / "val2017"
    folder.mkdir(parents=True)
    (root / "coco" / "annotations").mkdir()
    images, annotations = [], []
    for i, ((width, height), image_boxes) in enumerate(zip(SIZES, boxes)):
        pixels = np.random.default_rng().integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": width, "height": height})
        for box in image_boxes:
            box = [float(side) for side in box]  # Detectron2 cuts the fraction off integers that it has scaled
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "bbox": box, "area": box[2] * box[3]})
            annotations[-1].update({"category_id": 1 + len(annotations) % 5, "iscrowd": 0})
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    path = root / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder for $DETECTRON2_DATASETS. The second image has no object."""
    root = tmp_path_factory.mktemp("datasets")
    write_coco(root, [[[5, 8, 40, 30], [30, 20, 20, 34]], [], [[3, 10, 50, 61]], [[20, 20, 9, 12], [1, 2, 70, 75]]])
    return root


@pytest.fixture
def register():
    """Registers a COCO file for one test and returns its name."""
    names = []

    def register(json_file):
        names.append(f"{DATASET}_{len(names)}")
        register_coco_instances(names[-1], {}, str(json_file), str(json_file.parents[1] / "val2017"))
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def dataset(datasets, register):
    return register(datasets / "coco" / "annotations" / "instances_val2017.json")


def make_config(root, *opts):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.merge_from_file(str(root / "configs" / "Base-RetinaNet.yaml"))
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
        + ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.PIXEL_STD", [58.0, 57.0, 57.0]]
        + ["INPUT.MIN_SIZE_TEST", SHORT_SIDE, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", ("coco_2017_val",), *opts]
    )
    return cfg


@pytest.fixture
def make_training(request, tmp_path):
    """Writes what a training leaves behind, with random weights; returns its folder, configuration and model."""

    def make_training(*opts):
        cfg = make_config(request.config.rootpath, *opts)
        folder = tmp_path / "output"
        folder.mkdir()
        (folder / "config.yaml").write_text(cfg.dump())
        model = build_model(cfg)
        torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)  # easy and hard examples
        torch.save({"model": model.state_dict()}, folder / "model_final.pth")
        return folder, cfg, model.eval()

    return make_training


# The sample


def test_every_subset_is_equally_likely(project, seed):
    capacity, n, repeats = 4, 12, 10_000
    chosen = np.zeros((repeats, n), dtype=int)
    for i in range(repeats):
        reservoir = project.Reservoir(capacity, [seed, i])
        reservoir.add(np.arange(n))
        chosen[i, reservoir.values.astype(int)] = 1
    assert (chosen.sum(axis=1) == capacity).all()  # no value twice
    together = chosen.T @ chosen  # of two values, and on the diagonal of one
    p = np.full((n, n), capacity * (capacity - 1) / (n * (n - 1)))
    np.fill_diagonal(p, capacity / n)
    deviation = (together - repeats * p) / np.sqrt(repeats * p * (1 - p))
    assert np.abs(deviation).max() < 6  # once in 10 million runs


def test_everything_is_kept_while_there_is_room(project, seed):
    reservoir = project.Reservoir(100, seed)
    values = np.random.randn(100).astype(np.float32)
    for part in np.split(values, [0, 7, 60]):
        reservoir.add(part)
    assert reservoir.seen == 100
    np.testing.assert_array_equal(reservoir.values, values)


def test_the_sample_is_bounded_and_does_not_depend_on_how_the_values_are_split(project, seed):
    values = np.random.randn(5000).astype(np.float32)
    at_once, in_parts = project.Reservoir(300, seed), project.Reservoir(300, seed)
    at_once.add(values)
    for part in np.split(values, np.sort(np.random.randint(0, 5001, 20))):
        in_parts.add(part)
        assert len(in_parts.values) == min(300, in_parts.seen)
    assert at_once.seen == in_parts.seen == 5000
    np.testing.assert_array_equal(at_once.values, in_parts.values)
    assert np.isin(at_once.values, values).all()


# The distribution


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_cumulative_loss_and_shares_are_those_of_a_loop(project, gamma):
    x_t = (4 * np.random.randn(500)).astype(np.float32)
    losses = sorted(math.log1p(math.exp(-x)) / (1 + math.exp(x)) ** gamma for x in x_t.tolist())
    total = math.fsum(losses)
    expected = [math.fsum(losses[:i]) / total for i in range(501)]
    cumulative = project.cumulative_loss(x_t, gamma)
    np.testing.assert_allclose(cumulative, expected, rtol=1e-9)
    for fraction, count in ((0.01, 5), (0.2, 100), (1, 500)):
        share = project.share_of_hardest(cumulative, fraction)
        assert share == pytest.approx(math.fsum(losses[-count:]) / total, rel=1e-9)
    # 0.3 % of 500 are one example and a half.
    half = project.share_of_hardest(cumulative, 0.003)
    assert half == pytest.approx((losses[-1] + losses[-2] / 2) / total, rel=1e-9)


def test_equal_examples_have_equal_shares_for_every_gamma(project):
    for gamma, fraction in itertools.product((0, 0.5, 1, 2), (0.01, 0.2)):
        cumulative = project.cumulative_loss(np.full(37, 3.0), gamma)
        assert project.share_of_hardest(cumulative, fraction) == pytest.approx(fraction)


# The examples


def forward_by_hand(model, cfg, dataset_name):
    """Logits (R, K) and labels (R,) of every image, with boxes that are read and scaled here."""
    coco = json.loads(Path(MetadataCatalog.get(dataset_name).json_file).read_text())
    mapper = DatasetMapper(cfg, is_train=False)
    for record in DatasetCatalog.get(dataset_name):
        image = mapper(record)["image"]
        height, width = image.shape[1:]
        assert min(height, width) == SHORT_SIDE
        found = [a for a in coco["annotations"] if a["image_id"] == record["image_id"]]
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes *= torch.tensor([width / record["width"], height / record["height"]]).repeat(2)
        truth = Instances((height, width), gt_boxes=Boxes(boxes.float()))
        truth.gt_classes = torch.tensor([a["category_id"] - 1 for a in found], dtype=torch.int64)
        features = list(model.backbone(model.preprocess_image([{"image": image}]).tensor).values())
        logits = [x[0].reshape(-1, model.num_classes, *x.shape[2:]) for x in model.head(features)[0]]  # (A, K, H, W)
        logits = torch.cat([x.permute(2, 3, 0, 1).reshape(-1, model.num_classes) for x in logits])
        yield logits, model.assigner(model.anchor_generator(features), [truth]).labels[0]


@torch.no_grad()
def test_collects_what_the_loss_counts_and_nothing_else(project, make_training, dataset, seed):
    _, cfg, model = make_training()
    positives, negatives = project.Reservoir(10**6, seed), project.Reservoir(10**6, seed)
    project.collect(model, project.build_loader(cfg, dataset), positives, negatives)

    num_positives = num_counted = num_ignored = 0
    own_logits, loss = [], 0.0
    for logits, labels in forward_by_hand(model, cfg, dataset):
        positive = (labels >= 0) & (labels < 80)
        num_positives += positive.sum().item()
        num_counted += (labels >= 0).sum().item()
        num_ignored += (labels < 0).sum().item()
        own_logits += [logits[r, labels[r]].item() for r in positive.nonzero().flatten()]
        loss += sigmoid_focal_loss(logits.double(), labels, alpha=None, gamma=1.5).item()
    assert num_positives > 0 and num_ignored > 0
    assert positives.seen == num_positives
    assert negatives.seen == 80 * num_counted - num_positives
    np.testing.assert_allclose(np.sort(positives.values), np.sort(own_logits), rtol=1e-4, atol=1e-4)
    x_t = np.concatenate([positives.values, negatives.values]).astype(np.float64)
    collected = (np.logaddexp(0, -x_t) * np.exp(-1.5 * np.logaddexp(0, x_t))).sum()  # FL with gamma 1.5
    assert collected == pytest.approx(loss, rel=1e-4)


# The command


@pytest.mark.slow
def test_the_command_writes_figure_and_report_and_prints_the_table(make_training, datasets, python):
    folder, _, _ = make_training()
    words = (f"{FOLDER}/plot.py", folder, "--samples", 2000, "--seed", 7)
    result = python.run(*words, DETECTRON2_DATASETS=datasets, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    path = folder / "loss_distribution" / "loss_distribution.json"
    report = json.loads(path.read_text())
    assert report["dataset"] == "coco_2017_val" and report["seed"] == 7
    assert report["weights"] == str(folder / "model_final.pth")
    assert report["negatives"]["seen"] > report["negatives"]["sampled"] == 2000
    assert report["positives"]["seen"] == report["positives"]["sampled"] > 0

    lines = result.stdout.splitlines()
    for gamma in ("0", "0.5", "1", "2"):
        shares = [report[kind]["share_of_loss"][gamma] for kind in ("positives", "negatives")]
        assert [gamma, *(f"{share:.1%}" for share in shares)] in [line.split() for line in lines]
    for kind in ("positives", "negatives"):
        shares = [report[kind]["hardest"], *report[kind]["share_of_loss"].values()]
        assert (np.diff(shares) > -1e-9).all() and shares[1] < shares[-1] <= 1  # the larger gamma, the more

    assert lines[-1].endswith(str(path.with_suffix(".png").resolve()))
    with Image.open(path.with_suffix(".png")) as image:
        assert image.format == "PNG" and image.width >= 1000
    assert path.with_suffix(".png").stat().st_size < 300_000
    assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_the_seed_decides_the_sample(project, make_training, dataset):
    folder, _, _ = make_training()
    reports = []
    for seed in ("1", "1", "2"):
        project.main([str(folder), "--dataset", dataset, "--samples", "500", "--seed", seed])
        files = [folder / "loss_distribution" / f"loss_distribution.{suffix}" for suffix in ("json", "svg")]
        reports.append([file.read_bytes() for file in files])
    assert reports[0] == reports[1]
    shares = [json.loads(report)["negatives"]["share_of_loss"] for report, _ in reports]
    assert shares[0] != shares[2]


# What a user got wrong


@pytest.fixture
def refuses(project):
    def refuses(message, *arguments):
        with pytest.raises(SystemExit, match=f"^error: {message}") as error:
            project.main([*map(str, arguments)])
        assert "Traceback" not in str(error.value)

    return refuses


def test_a_folder_without_a_training_is_refused(refuses, make_training, dataset):
    refuses("cannot read config file .*nowhere/config.yaml", "nowhere")
    folder, _, _ = make_training()
    (folder / "model_final.pth").unlink()
    refuses("no weights .*model_final.pth.*--weights", folder, "--dataset", dataset)
    refuses("no weights .*other.pth", folder, "--dataset", dataset, "--weights", folder / "other.pth")


def test_a_file_that_is_no_checkpoint_is_refused(refuses, make_training, dataset):
    folder, _, _ = make_training()
    (folder / "model_final.pth").write_text("no checkpoint\nat all")
    refuses("weights .*model_final.pth: this is a text file", folder, "--dataset", dataset)


@pytest.mark.parametrize(
    "opts, message",
    [
        (("MODEL.RETINANET.NUM_CONVS", 2), r"4 tensors are not of this model:\n  head\.bbox_subnet\.2\."),
        (("MODEL.RETINANET.NUM_CONVS", 0), r"4 tensors are missing in the file:\n  head\.bbox_subnet\.0\."),
        (("MODEL.RETINANET.NUM_CLASSES", 79), r"2 tensors are of another shape .*\n  head\.cls_score\."),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(refuses, make_training, dataset, request, opts, message):
    folder, _, _ = make_training()
    other = build_model(make_config(request.config.rootpath, *opts))
    torch.save({"model": other.state_dict()}, folder / "other.pth")
    refuses(
        f"weights .*other.pth: .*{message}",
        *(folder, "--dataset", dataset, "--weights", folder / "other.pth"),
    )


def test_a_checkpoint_of_detectron2s_own_retinanet_fits(project, make_training, request):
    folder, cfg, _ = make_training()
    own = build_model(make_config(request.config.rootpath, "MODEL.META_ARCHITECTURE", "RetinaNet"))
    weights = {**own.state_dict(), "pixel_mean": own.pixel_mean, "pixel_std": own.pixel_std}
    torch.save({"model": weights}, folder / "own.pth")
    model = project.load_model(cfg, folder / "own.pth")
    assert not model.training
    for name, value in own.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_another_architecture_is_refused(refuses, make_training, dataset):
    folder, cfg, _ = make_training()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    (folder / "config.yaml").write_text(cfg.dump())
    refuses(".*config.yaml: MODEL.META_ARCHITECTURE is RetinaNet", folder, "--dataset", dataset)


def test_weights_that_diverged_are_refused(refuses, make_training, dataset):
    folder, _, model = make_training()
    for value, message in [
        (math.nan, r"weights .*model_final.pth: the weights diverged"),
        (1e38, r"the weights give logits that are not finite on .*0\.png"),
    ]:
        torch.nn.init.constant_(model.head.cls_score.weight, value)
        torch.save({"model": model.state_dict()}, folder / "model_final.pth")
        refuses(message, folder, "--dataset", dataset)


def test_a_data_set_that_does_not_exist_is_refused(refuses, make_training):
    folder, _, _ = make_training()
    refuses("data set 'coco_2071_val' is not registered. Did you mean", folder, "--dataset", "coco_2071_val")


def test_a_data_set_without_a_positive_anchor_is_refused(refuses, make_training, register, tmp_path):
    folder, _, _ = make_training("MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES", False)
    empty = register(write_coco(tmp_path / "empty", [[], [], [], []]))
    refuses(f"data set '{empty}' has no boxes", folder, "--dataset", empty)
    tiny = register(write_coco(tmp_path / "tiny", [[[10, 10, 3, 3]], [], [], []]))
    refuses(f"data set '{tiny}' has no positives", folder, "--dataset", tiny)


def test_a_sample_of_nothing_is_refused(refuses, make_training, dataset):
    folder, _, _ = make_training()
    refuses("--samples is 0", folder, "--dataset", dataset, "--samples", 0)
