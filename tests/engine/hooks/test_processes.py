"""Two processes: the validation loss is that of one, and both end a training that rank 0 alone has results of."""

import retina_plugin  # noqa: F401  first: the processes that this test starts import this file alone

import copy  # isort: skip
import json  # isort: skip
from datetime import timedelta  # isort: skip
from pathlib import Path  # isort: skip

import pytest  # isort: skip
import torch  # isort: skip
from detectron2.data.datasets import register_coco_instances  # isort: skip
from detectron2.modeling import build_model  # isort: skip
from detectron2.utils import comm  # isort: skip
from torch import distributed as dist  # isort: skip

from retina_plugin import ConfigError
from retina_plugin.engine.hooks.validation_loss import ValidationLoss
from tests.engine.hooks.conftest import small_cfg
from tests.engine.hooks.loop import Loop

VALUES = [0.0, 0.0, 3.0, 0.0, 5.0, 0.0, 4.0, 0.0, 5.0, 0.0, 5.0, 0.0, 9.0]  # patience 3 ends after 10


def validate(folder, config):
    cfg = small_cfg(
        config, folder / "output", "TEST.VAL_LOSS_PERIOD", 1, "MODEL.RETINANET.LOSS_NORMALIZER", "positives_global"
    )
    model = build_model(cfg).train()
    model.load_state_dict(torch.load(folder / "model.pth"))
    return ValidationLoss(cfg, model)()


def job(rank, folder, config):
    torch.set_num_threads(1)
    folder = Path(folder)
    register_coco_instances("pets", {}, str(folder / "annotations" / "instances_pets.json"), str(folder / "pets"))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    comm._LOCAL_PROCESS_GROUP = dist.new_group(range(2))
    losses = validate(folder, config)
    loop = Loop(VALUES, folder / "run", patience=3)
    ended = loop.run()
    again = Loop(VALUES, folder / "run", patience=3)
    again_ended = again.run(resume=True)
    try:
        message = Loop(VALUES, folder / "wrong", metric="bbox/AR").run()
    except ConfigError as error:
        message = str(error)
    result = [losses, ended, loop.iter, loop.state_dict()["hooks"]["BestCheckpoint"], again_ended, again.steps, message]
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_end_together(pets, config, python):
    model = build_model(small_cfg(config, pets / "output"))
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.1)
    torch.save(copy.deepcopy(model.state_dict()), pets / "model.pth")
    expected = validate(pets, config)
    python.spawn(job, (str(pets), config), nprocs=2)
    results = [json.loads((pets / f"{rank}.json").read_text()) for rank in range(2)]
    assert [losses for losses, *_ in results] == [expected, {}]  # to the last bit, on the main process
    for _, ended, iteration, best, again_ended, again_steps, message in results:
        assert ended and iteration == 10 and (best["value"], best["iteration"]) == (5.0, 3)
        assert again_ended and again_steps == 0
        assert "'bbox/AR', which no evaluation gives" in message
