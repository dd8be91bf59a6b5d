"""One, two and four processes are the same training and the same evaluation.

Four processes do all of it: in a group of four, then two of them in a group of two while another works alone.
"""

import retina_plugin  # first: the processes that this test starts import this file alone

import json  # isort: skip
import os  # isort: skip
from pathlib import Path  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import torch  # isort: skip
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retina_plugin.engine import evaluate

IMAGES, CLASSES, SIZE = 8, 3, 64
# Boxes of each image: in the second, all images of the first process of two and of the first two of four are empty.
EMPTY = "a rank without boxes"
COUNTS = {"boxes": (3, 1, 0, 5, 2, 4, 1, 1), EMPTY: (0, 0, 0, 0, 2, 4, 0, 3), "no boxes": (0,) * IMAGES}
CASES = [*(("focal", counts) for counts in COUNTS), ("cross_entropy", EMPTY), ("focal_star", EMPTY), ("ohem", EMPTY)]
TILES = {"whole": 0, "tiles": 40}  # TEST.TILE.SIZE of the evaluations
TEST_SETS = {"seven_images": 7, "three_images": 3}  # neither divisible by 2 or 4; the fourth process may have none


def make_cfg(folder, loss="focal"):
    cfg = get_cfg()
    retina_plugin.add_retina_config(cfg)
    config = Path(retina_plugin.__file__).parents[1] / "configs" / "Base-RetinaNet.yaml"
    width = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    model = [*width, "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.FPN.OUT_CHANNELS", 16]
    head = ["MODEL.RETINANET.NUM_CLASSES", CLASSES, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.CLS_LOSS", loss]
    job = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", SIZE, "OUTPUT_DIR", str(folder)]
    test = ["MODEL.WEIGHTS", str(folder / "weights.pth"), "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    key = ["MODEL.RETINANET.LOSS_NORMALIZER", "positives_global", "MODEL.PIXEL_STD", [58.0, 57.0, 57.0]]
    retina_plugin.merge_config(cfg, str(config), [*model, *head, *job, *test, *key, "DATASETS.TEST", tuple(TEST_SETS)])
    return cfg


def make_image(seed, index, count):
    generator = torch.Generator().manual_seed(seed + index)
    corner = torch.rand(count, 2, generator=generator) * 30
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + 20 + index], dim=1))
    instances.gt_classes = torch.arange(count) % CLASSES
    return {"image": torch.randint(0, 256, (3, SIZE, SIZE), generator=generator), "instances": instances}


def gradients(folder, seed, loss, counts, rank, world_size):
    torch.manual_seed(seed)
    # In float32, the order of a sum decides now and then on which side of 0 a ReLU or an L1 error lies.
    model = build_model(make_cfg(folder, loss)).double()
    if world_size > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    share = IMAGES // world_size
    with EventStorage():
        images = [make_image(seed, i, counts[i]) for i in range(rank * share, (rank + 1) * share)]
        sum(model(images).values()).backward()
    return {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}


def work(rank, folder, seed):
    torch.set_num_threads(1)
    for name in TEST_SETS:
        register_coco_instances(name, {}, str(folder / f"{name}.json"), str(folder))
    for world_size in (4, 2, 1):
        me = rank if world_size > 1 else rank - 3  # the last one is alone
        if not 0 <= me < world_size:
            continue
        if world_size > 1:
            init = f"file://{folder}/init{world_size}"
            dist.init_process_group("gloo", init_method=init, rank=me, world_size=world_size)
        found = {(loss, case): gradients(folder, seed, loss, COUNTS[case], me, world_size) for loss, case in CASES}
        torch.save(found, folder / f"gradients_{world_size}_{me}.pth")
        for kind, size in TILES.items():
            cfg = make_cfg(folder)
            cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP = size, 12
            cfg.OUTPUT_DIR = str(folder / f"{kind}_{world_size}")
            results = evaluate(cfg)
            if me == 0:
                (folder / f"{kind}_{world_size}.json").write_text(json.dumps(results, sort_keys=True))
        if world_size > 1:
            dist.destroy_process_group()
            comm._get_global_gloo_group.cache_clear()  # made for one group a process


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, python):
    """Folder of what all groups computed."""
    folder = tmp_path_factory.mktemp("processes")
    seed = int.from_bytes(os.urandom(3), "big")
    print("seed", seed)
    torch.manual_seed(seed)
    model = build_model(make_cfg(folder)).eval()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.5)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    for name, count in TEST_SETS.items():
        write_what_the_model_finds(model, folder, name, count)
    python.spawn(work, (folder, seed), nprocs=4)
    return folder


def write_what_the_model_finds(model, folder, name, count):
    """A COCO file whose boxes are some detections, moved a little: every AP is between 0 and 100."""
    rng = np.random.default_rng(torch.randint(2**31, ()).item())
    images, annotations = [], []
    for i in range(1, count + 1):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
        images.append({"id": i, "file_name": f"{name}_{i}.png", "height": SIZE, "width": SIZE})
        blue_first = torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1)
        with torch.no_grad():
            found = model([{"image": blue_first, "height": SIZE, "width": SIZE}])[0]["instances"]
        for k in range(0, 10, 2):
            x0, y0, x1, y1 = found.pred_boxes.tensor[k].tolist()
            x0, y0 = x0 + rng.uniform(0, 0.2) * (x1 - x0), y0 + rng.uniform(0, 0.2) * (y1 - y0)
            box = [x0, y0, x1 - x0, y1 - y0]
            category = found.pred_classes[k].item() + 1
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": box})
            annotations[-1].update(area=box[2] * box[3], iscrowd=0)
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
    coco = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(coco))


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "case"), CASES)
def test_gradients_are_those_of_one_process_with_all_images(outcomes, loss, case):
    expected = torch.load(outcomes / "gradients_1_0.pth")[loss, case]
    assert any(gradient.abs().max() > 0 for gradient in expected.values())
    for world_size in (2, 4):
        for rank in range(world_size):
            ours = torch.load(outcomes / f"gradients_{world_size}_{rank}.pth")[loss, case]
            assert set(ours) == set(expected)
            for name, gradient in expected.items():
                scale = gradient.abs().max()
                assert (ours[name] - gradient).abs().max() <= 1e-9 * scale, (world_size, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TILES)
@pytest.mark.parametrize("test_set", TEST_SETS)
def test_evaluation_is_that_of_one_process(outcomes, test_set, kind):
    expected = json.loads((outcomes / f"{kind}_1.json").read_text())[test_set]["bbox"]
    assert 0 < expected["AP"] < 100
    predictions = Path("inference", test_set, "coco_instances_results.json")
    for world_size in (2, 4):
        ours = json.loads((outcomes / f"{kind}_{world_size}.json").read_text())[test_set]["bbox"]
        np.testing.assert_equal(ours, expected)  # to the last bit, and nan where it is nan
        written = [(outcomes / f"{kind}_{n}" / predictions).read_bytes() for n in (1, world_size)]
        assert written[0] == written[1] and len(json.loads(written[0])) > TEST_SETS[test_set]
