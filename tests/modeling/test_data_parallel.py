"""The detector under DistributedDataParallel: gradients of two processes are those of one with all images."""

import retina_plugin  # first: the processes that this test starts import this file alone

import pytest  # isort: skip
import torch  # isort: skip
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

COUNTS = (3, 0)  # boxes of each image: the second process has none


def make_model(seed, config):
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    cfg = get_cfg()
    retina_plugin.add_retina_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
        + ["MODEL.RETINANET.LOSS_NORMALIZER", "positives_global", "MODEL.PIXEL_STD", [58.0, 57.0, 57.0]]
    )
    # In float32, the order of a sum decides now and then on which side of 0 a ReLU or an L1 error lies.
    return build_model(cfg).double()


def make_image(seed, index):
    generator = torch.Generator().manual_seed(seed + index)
    corner = torch.rand(COUNTS[index], 2, generator=generator) * 60
    instances = Instances((128, 128))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + 40], dim=1))
    instances.gt_classes = torch.arange(COUNTS[index])
    return {"image": torch.randint(0, 256, (3, 128, 128), generator=generator), "instances": instances}


def gradients(model, images):
    with EventStorage():
        sum(model(images).values()).backward()
    return {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}


def train_one_image(rank, init_file, seed, config, results):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    model = DistributedDataParallel(make_model(seed, config), broadcast_buffers=False)
    torch.save(gradients(model, [make_image(seed, rank)]), f"{results}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path, seed, request):
    config = str(request.config.rootpath / "configs" / "Base-RetinaNet.yaml")
    expected = gradients(make_model(seed, config), [make_image(seed, i) for i in range(2)])
    mp.spawn(train_one_image, (tmp_path / "init", seed, config, tmp_path), nprocs=2)
    for rank in range(2):
        ours = torch.load(tmp_path / f"{rank}.pth")
        assert set(ours) == set(expected)
        for name, gradient in expected.items():
            assert (ours[name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name
