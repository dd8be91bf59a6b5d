"""Training in bf16: the step, its place beside Detectron2's fp16, and runs resumed from one in the other."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.events import EventStorage

from retina_plugin import ConfigError, add_retina_config, merge_config
from retina_plugin.engine import RetinaTrainer

from .conftest import write_coco


@pytest.fixture
def make_trainer(request, tmp_path):
    """make_trainer(precision) -> a trainer of a small detector, "fp32" without SOLVER.AMP."""
    categories = [{"id": i, "name": name} for i, name in ((3, "cat"), (7, "dog"), (9, "cow"))]
    register_coco_instances("pets", {}, *map(str, write_coco(tmp_path, "pets", 3, categories)))

    def make(precision, *opts):
        cfg = get_cfg()
        add_retina_config(cfg)
        base = str(request.config.rootpath / "configs" / "Base-RetinaNet.yaml")
        amp = () if precision == "fp32" else ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision)
        small = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 32)
        model = ("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.PIXEL_STD", [58.0, 57.0, 57.0], "MODEL.CHANNELS_LAST", True)
        data = ("DATASETS.TRAIN", ("pets",), "DATASETS.TEST", (), "INPUT.MIN_SIZE_TRAIN", (96,))
        job = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 0, "DATALOADER.NUM_WORKERS", 0)
        merge_config(cfg, base, [*small, *model, *data, *job, *amp, "OUTPUT_DIR", str(tmp_path / "output"), *opts])
        return RetinaTrainer(cfg)

    yield make
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


def losses_and_gradients(model, batch, precision):
    model.zero_grad()
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = model(copy.deepcopy(batch))
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_is_forward_under_autocast_and_a_plain_update(make_trainer):
    trainer = make_trainer("bf16")
    model, batches = copy.deepcopy(trainer.model), []
    trainer.model.register_forward_pre_hook(lambda model, inputs: batches.append(copy.deepcopy(inputs[0])))
    with EventStorage() as trainer.storage:
        trainer.run_step()
    losses, gradients = losses_and_gradients(model, batches[0], "bf16")
    assert trainer.storage.latest()["total_loss"][0] == pytest.approx(sum(losses.values()).item())
    trained = dict(trainer.model.named_parameters())
    assert set(gradients) == {name for name, p in trained.items() if p.grad is not None}
    for name, gradient in gradients.items():
        assert trained[name].dtype == trained[name].grad.dtype == torch.float32
        assert torch.equal(trained[name].grad, gradient), name
    assert not torch.equal(trained["head.cls_score.bias"], model.head.cls_score.bias), "it trains"


def test_losses_and_gradients_are_close_to_those_of_float32(make_trainer):
    trainer = make_trainer("fp32", "MODEL.RETINANET.LOSS_NORMALIZER", "positives")
    model, batch = trainer.model, next(iter(trainer.data_loader))
    expected_losses, expected = losses_and_gradients(model, batch, "fp32")
    losses, gradients = losses_and_gradients(model, batch, "bf16")
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected_losses[name], rtol=0.02, atol=0)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        if name.startswith("head."):
            cosine = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
            # Through the towers, rounding switches some ReLUs.
            assert cosine > (0.95 if "subnet" in name else 0.98), name


def test_evaluation_between_steps_is_in_its_own_precision(make_trainer):
    trainer, seen = make_trainer("bf16"), []
    trainer.model.head.register_forward_hook(lambda head, inputs, output: seen.append(output[0][0].dtype))
    with EventStorage() as trainer.storage:
        trainer.run_step()
    with torch.no_grad():
        trainer.model.eval()([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert seen == [torch.bfloat16, torch.float32]


def test_fp16_alone_scales_the_loss(make_trainer, recwarn):
    assert make_trainer("fp16")._trainer.grad_scaler is not None
    for precision in ("fp32", "bf16"):
        assert make_trainer(precision)._trainer.grad_scaler is None
    assert not [w for w in recwarn if "GradScaler" in str(w.message)]


def test_the_configuration_of_the_trainer_is_the_one_it_was_given(make_trainer):
    amp = make_trainer("bf16").cfg.SOLVER.AMP
    assert amp.ENABLED and amp.PRECISION == "bf16"


def test_a_precision_that_does_not_exist_is_refused(make_trainer):
    with pytest.raises(ConfigError, match="SOLVER.AMP.PRECISION is 'fp32', which is none of fp16, bf16"):
        make_trainer("fp16", "SOLVER.AMP.PRECISION", "fp32")


@pytest.mark.parametrize("before, after", [("fp16", "bf16"), ("bf16", "fp16"), ("bf16", "fp32"), ("fp32", "bf16")])
def test_a_run_is_resumed_in_another_precision(make_trainer, before, after):
    trainer = make_trainer(before)
    for p in trainer.optimizer.param_groups[0]["params"]:
        trainer.optimizer.state[p]["momentum_buffer"] = torch.randn_like(p)
    trainer.iter = 6
    state = copy.deepcopy(trainer.state_dict())
    assert ("grad_scaler" in state["_trainer"]) == (before == "fp16")
    resumed = make_trainer(after)
    resumed.load_state_dict(state)
    assert resumed.iter == 6
    for p, saved in zip(resumed.optimizer.param_groups[0]["params"], trainer.optimizer.param_groups[0]["params"]):
        momentum = trainer.optimizer.state[saved]["momentum_buffer"]
        assert torch.equal(resumed.optimizer.state[p]["momentum_buffer"], momentum)


def test_a_training_in_bf16_is_stopped_and_resumed(make_trainer):
    make_trainer("bf16", "SOLVER.MAX_ITER", 2).train()
    trainer = make_trainer("bf16", "SOLVER.MAX_ITER", 3)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    assert trainer.iter == 3 and all(torch.isfinite(p).all() for p in trainer.model.parameters())
