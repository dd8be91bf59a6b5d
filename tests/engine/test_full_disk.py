"""A training whose files may not grow, as on a full disk, ends with a line and keeps its last checkpoint."""

import re

import pytest
import torch

CODE = """
import resource, signal, sys
import retina_plugin
from pathlib import Path
from detectron2.engine import hooks
from retina_plugin.core.errors import UserError, format_error
from retina_plugin.engine import RetinaTrainer
from retina_plugin.engine.logs import setup_logs
from tests.engine.tiny import tiny_config

folder = Path(sys.argv[1])
cfg = tiny_config(folder, "SOLVER.MAX_ITER", 50, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 0, "LOG_PERIOD", 1)
setup_logs(cfg.OUTPUT_DIR, 0)
trainer = RetinaTrainer(cfg)

def limit(trainer):
    if trainer.iter == 4:
        size = max(path.stat().st_size for path in (folder / "out").glob(sys.argv[2]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, -1))

trainer.register_hooks([hooks.CallbackHook(before_step=limit)])
try:
    trainer.train()
except UserError as error:
    sys.exit(format_error(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("too_large", ["*.pth", "metrics.json", "log.txt"])
def test_it_ends_without_a_traceback(python, tmp_path, too_large):
    result = python.run("-c", CODE, tmp_path, too_large, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=1)
    shown = result.stdout + result.stderr
    assert result.returncode == 1 and "Traceback" not in shown and "Logging error" not in shown, shown
    last = result.stderr.splitlines()[-1]
    assert re.match(r"error: .* cannot be written: File too large\. Free space", last) and "--resume goes on" in last
    named = {"*.pth": r"/out/model_0000005\.pth", "metrics.json": r"/out/metrics\.json", "log.txt": ""}[too_large]
    assert re.search(named, last)
    checkpoint = tmp_path / "out" / (tmp_path / "out" / "last_checkpoint").read_text()
    assert torch.load(checkpoint, weights_only=True)["iteration"] == 3
    assert not list((tmp_path / "out").glob("*.unfinished"))
