"""The divisor of the losses, and its state."""

import pytest
import torch
from torch import distributed as dist

from retina_plugin.losses import LossNormalizer


def test_ema_follows_its_recursion():
    normalizer, expected = LossNormalizer("ema"), 100.0
    for count in torch.randint(0, 500, (30,)):
        expected = 0.9 * expected + 0.1 * max(count.item(), 1)
        assert normalizer(count).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["positives", "positives_global"])
@pytest.mark.parametrize("count, divisor", [(0, 1), (1, 1), (37, 37)])
def test_positives_of_one_process(mode, count, divisor):
    assert LossNormalizer(mode)(torch.tensor(count)).item() == divisor


def _mean_over_processes(rank, folder, counts):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=len(counts))
    mean = LossNormalizer("positives_global")(torch.tensor(counts[rank])).item()
    (folder / f"{rank}").write_text(str(mean))
    dist.destroy_process_group()


@pytest.mark.parametrize("counts, divisor", [((30, 0), 15.0), ((0, 0), 0.5)])
def test_positives_global_is_the_mean_over_processes(counts, divisor, tmp_path, python):
    python.spawn(_mean_over_processes, (tmp_path, counts), nprocs=2)
    assert [float((tmp_path / f"{rank}").read_text()) for rank in range(2)] == [divisor, divisor]


@pytest.mark.parametrize("mode", LossNormalizer.MODES)
def test_average_is_saved_in_every_mode_and_may_be_missing(mode):
    trained = LossNormalizer("ema")
    trained(torch.tensor(7))
    assert set(trained.state_dict()) == {"ema"}
    resumed = LossNormalizer(mode)
    resumed.load_state_dict(trained.state_dict())
    assert resumed.ema == trained.ema != LossNormalizer.INITIAL
    resumed.load_state_dict({})  # strict, and no error
    assert resumed.ema == trained.ema


def test_backward_after_a_later_step():
    normalizer, x = LossNormalizer("ema"), torch.tensor(3.0, requires_grad=True)
    first = x / normalizer(torch.tensor(10))
    normalizer(torch.tensor(500))
    first.backward()
    assert x.grad.item() == pytest.approx(1 / 91)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="positive"):
        LossNormalizer("positive")
