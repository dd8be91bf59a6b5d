"""Schedules that fit the images of a step, and the table of their epochs."""

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler

from retina_plugin import ConfigError, add_retina_config
from retina_plugin.engine.schedule import scale_schedule, schedule_table

SCALED = [
    *(("SOLVER", key) for key in ("WARMUP_ITERS", "MAX_ITER", "CHECKPOINT_PERIOD")),
    *(("TEST", key) for key in ("EVAL_PERIOD", "VAL_LOSS_PERIOD")),
]


def config(**solver):
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.TEST.EVAL_PERIOD, cfg.TEST.VAL_LOSS_PERIOD = 5000, 2000
    cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER = 0.01, (60000, 80000), 90000
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def values(cfg):
    return {key: cfg[section][key] for section, key in SCALED} | {"STEPS": tuple(cfg.SOLVER.STEPS)}


@pytest.mark.parametrize("images", [2, 8, 16, 64])
def test_everything_that_is_counted_in_steps_is_as_many_images_as_before(images):
    before, cfg = config(), config(REFERENCE_BATCH_SIZE=16, IMS_PER_BATCH=images)
    scale_schedule(cfg, num_processes=2)
    assert images == cfg.SOLVER.IMS_PER_BATCH
    assert pytest.approx(0.01 * images / 16) == cfg.SOLVER.BASE_LR
    for section, key in SCALED:
        assert cfg[section][key] * images == pytest.approx(before[section][key] * 16, abs=images / 2), key
    assert cfg.SOLVER.STEPS == tuple(round(step * 16 / images) for step in (60000, 80000))


def test_a_scaled_configuration_is_not_scaled_again():
    cfg = config(REFERENCE_BATCH_SIZE=16, IMS_PER_BATCH=4)
    scale_schedule(cfg, num_processes=1)
    once = values(cfg)
    scale_schedule(cfg, num_processes=1)
    assert values(cfg) == once


def test_a_reference_world_size_keeps_the_images_of_a_process():
    cfg = config(REFERENCE_WORLD_SIZE=8)
    scale_schedule(cfg, num_processes=2)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE) == (4, 2)
    of_images = config(REFERENCE_BATCH_SIZE=16, IMS_PER_BATCH=4)
    scale_schedule(of_images, num_processes=2)
    assert values(cfg) == values(of_images)
    assert cfg.SOLVER.BASE_LR == of_images.SOLVER.BASE_LR == 0.0025


def test_nothing_changes_without_the_keys():
    cfg = config(IMS_PER_BATCH=4)
    scale_schedule(cfg, num_processes=2)
    assert cfg == config(IMS_PER_BATCH=4)


def test_a_period_stays_one_and_none_stays_none():
    cfg = config(REFERENCE_BATCH_SIZE=1, IMS_PER_BATCH=64, CHECKPOINT_PERIOD=20)
    cfg.TEST.EVAL_PERIOD = 0
    scale_schedule(cfg, num_processes=1)
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (1, 0)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"REFERENCE_BATCH_SIZE": -1}, "SOLVER.REFERENCE_BATCH_SIZE is -1"),
        ({"REFERENCE_BATCH_SIZE": 16, "REFERENCE_WORLD_SIZE": 8}, "both scale the schedule"),
        ({"REFERENCE_WORLD_SIZE": 3}, "IMS_PER_BATCH is 16, which SOLVER.REFERENCE_WORLD_SIZE 3 does not divide"),
        ({"REFERENCE_WORLD_SIZE": -8}, "REFERENCE_WORLD_SIZE is -8"),
        ({"STEPS": (60000, 90000)}, "STEPS is .60000, 90000.; steps must increase, and none may equal SOLVER.MAX_ITER"),
        ({"STEPS": (80000, 60000)}, "STEPS is .80000, 60000.; steps must increase"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(solver, message):
    with pytest.raises(ConfigError, match=message):
        scale_schedule(config(**solver), num_processes=1)


@pytest.mark.parametrize(
    "solver",
    [
        {"MAX_ITER": 90, "STEPS": (60, 80), "WARMUP_ITERS": 10},
        {"MAX_ITER": 90, "STEPS": (60, 80), "WARMUP_ITERS": 70},
        {"MAX_ITER": 90, "STEPS": (60, 120), "WARMUP_ITERS": 0},
        {"MAX_ITER": 90, "STEPS": (60, 80), "WARMUP_ITERS": 200},
    ],
)
def test_the_table_tells_the_learning_rates_of_the_scheduler(solver):
    cfg = config(IMS_PER_BATCH=4, **solver)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rows = re.findall(r"(\d+) to (\d+) +\| (\S+) to (\S+) +\| (.*?) +\|", schedule_table(cfg, num_images=30))
    end_of_last = 0
    for start, end, first_epoch, last_epoch, rate in rows:
        start, end = int(start), int(end)
        assert start == end_of_last
        assert float(first_epoch) == pytest.approx(start * 4 / 30, rel=1e-2)
        assert float(last_epoch) == pytest.approx(end * 4 / 30, rel=1e-2)
        if "warm-up" in rate:
            assert float(rate.split()[-1]) == pytest.approx(rates[start], rel=1e-2)
        else:
            assert [float(rate)] * 2 == pytest.approx([rates[start], rates[end - 1]], rel=1e-2)
        end_of_last = end
    assert end_of_last == cfg.SOLVER.MAX_ITER
