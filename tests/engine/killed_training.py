"""Trains without a stop, and trains the same again while it is killed and resumed; run by test_killed_training.py.

    python killed_training.py FOLDER [--seed 1] [--kills 30] [--processes 1] [--workers 0] [--moments MOMENT ...]

Without moments, each kill comes at a random time. A moment is one of :data:`MOMENTS`, a number within it and the number
of the iteration at or after which it counts. Prints where each kill hit, then what differs: losses of all iterations,
metrics, and the last checkpoint. Exit code 1 if anything does.
"""

import argparse
import json
import mmap
import os
import random
import re
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

import retina_plugin  # noqa: F401  makes Detectron2 importable
from retina_plugin.checkpoint import checkpointer as checkpointing
from retina_plugin.engine import EXIT_INTERRUPTED, RetinaTrainer, TrainingInterrupted
from retina_plugin.engine.writers import MetricsWriter, PeriodicWriter
from retina_plugin.modeling import RETINANET_HEAD_REGISTRY, RetinaNetHead
from tests.checkpoint.killed import Killer
from tests.engine.tiny import tiny_config, write_pets

from detectron2.engine import HookBase  # isort: skip
from detectron2.utils import comm  # isort: skip

MOMENTS = ("step", "write", "replace", "evaluation", "record", "signal")  # SIGTERM to the last process
PHASES = ("starts", "trains", "writes a checkpoint", "evaluates")
ITERATIONS = 14


@RETINANET_HEAD_REGISTRY.register()
class DropoutHead(RetinaNetHead):
    """So that a step draws random numbers."""

    def forward(self, features):
        return super().forward([torch.nn.functional.dropout(x, 0.2, self.training) for x in features])


class Observed(HookBase):
    """Writes every loss down, tells the parent what goes on, and has a state that depends on the evaluations."""

    def __init__(self, path, progress):
        self.path, self.progress, self.seen = path, progress, []

    def before_step(self):
        self.progress.set("trains", self.trainer.iter)

    def after_step(self):
        latest = self.trainer.storage.latest()
        if "bbox/AP" in latest:
            self.seen.append([self.trainer.iter, latest["bbox/AP"][1]])
        if comm.is_main_process() and latest["total_loss"][1] == self.trainer.iter:
            with open(self.path, "a") as file:
                file.write(json.dumps([self.trainer.iter, latest["total_loss"][0]]) + "\n")

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


class Progress:
    """What a training does now, for its parent to read after it was killed."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 16)

    def set(self, phase, iteration=None):
        self.memory[0] = PHASES.index(phase)
        if iteration is not None:
            self.memory[8] = iteration

    def get(self):
        return PHASES[self.memory[0]], self.memory[8]


def config(folder, output, args):
    data = ("DATALOADER.NUM_WORKERS", args.workers, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    data += ("SOLVER.IMS_PER_BATCH", 4, "INPUT.MIN_SIZE_TRAIN", (32, 48, 64))
    model = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RETINANET.HEAD_NAME", "DropoutHead")
    data += ("LOG_PERIOD", 4)  # the last line counts the images of several iterations
    run = ("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", (6, 10), "SOLVER.WARMUP_ITERS", 3, "SOLVER.BASE_LR", 0.01)
    save = ("SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 3, "SEED", args.seed, "OUTPUT_DIR", output)
    test = ("TEST.BEST_CHECKPOINT.METRIC", "bbox/AP", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    test += ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2)
    return tiny_config(Path(folder), *data, *model, *run, *save, *test)


def arm(moment, trainer, progress):
    """Let this process be killed in a moment, as "write 0.5 7": half of the first checkpoint from iteration 7 on."""
    phase, number, iteration = moment.split()
    save, replace, step, count = torch.save, os.replace, trainer.run_step, 0

    def is_due():
        return progress.get()[1] >= int(iteration)

    def killing_step():
        if is_due():
            os.kill(os.getpid(), signal.SIGKILL)
        step()

    def signalled_step():
        nonlocal count
        if is_due() and comm.get_rank() == comm.get_world_size() - 1 and not count:
            count = 1
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    def killing_save(data, file, **kwargs):
        is_checkpoint = "model" in data and is_due()
        save(data, Killer(file, float(number) * 500_000) if is_checkpoint else file, **kwargs)

    def killing_replace(*names):
        nonlocal count
        replace(*names)
        kinds = ("pth", "last_checkpoint") if phase == "replace" else ("run_state.json",)
        if is_due() and names[1].endswith(kinds):
            count += 1
            if count == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

    def killing_inference(module, images, _=None):
        nonlocal count
        if not module.training and is_due():
            count += 1
            if count == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

    if phase == "step":
        trainer.run_step = killing_step
    elif phase == "signal":
        trainer.run_step = signalled_step
    elif phase == "write":
        torch.save = killing_save
    elif phase in ("replace", "record"):
        os.replace = killing_replace
    else:
        trainer.model.register_forward_pre_hook(killing_inference)


def observe(progress):
    """Tell the parent of checkpoints and evaluations, which are no hooks of their own."""
    atomic_write, test = checkpointing.atomic_write, RetinaTrainer.test.__func__

    def observed_write(*args, **options):
        progress.set("writes a checkpoint")
        atomic_write(*args, **options)
        progress.set("trains")

    def observed_test(cls, *args):
        progress.set("evaluates")
        result = test(cls, *args)
        progress.set("trains")
        return result

    checkpointing.atomic_write = observed_write
    RetinaTrainer.test = classmethod(observed_test)


def work(rank, folder, output, args, progress, moment):
    """The job of one process."""
    if args.processes > 1:
        torch.set_num_threads(1)
        url = f"file://{output}.init"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=args.processes)
        comm._LOCAL_PROCESS_GROUP = dist.new_group(range(args.processes))
    os.makedirs(output, exist_ok=True)
    observe(progress)
    cfg = config(folder, output, args)
    # A run that is resumed gets other random numbers, of which nothing may be seen.
    seed = int.from_bytes(os.urandom(4), "big") if os.path.exists(f"{output}/last_checkpoint") else args.seed
    torch.manual_seed(seed)
    np.random.seed(seed)
    trainer = RetinaTrainer(cfg)
    trainer.register_hooks([Observed(f"{output}.losses", progress)])
    if rank == 0:
        trainer.register_hooks([PeriodicWriter([MetricsWriter(f"{output}/often.json")], period=2)])
    trainer.resume_or_load(resume=True)
    if moment:
        arm(moment, trainer, progress)
    trainer.train()


def run(folder, output, args, *, moment=None, delay=None):
    """Start a training and wait for it; returns whether it was killed, and where."""
    progress = Progress()
    if os.path.exists(f"{output}.init"):
        os.remove(f"{output}.init")
    children = []
    for rank in range(args.processes):
        child = os.fork()
        if child == 0:
            with open(f"{output}.log", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            try:
                work(rank, folder, output, args, progress, moment)
            except TrainingInterrupted:
                os._exit(EXIT_INTERRUPTED)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    if delay is not None:
        time.sleep(delay)
        for child in random.sample(children, len(children)):
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitpid(children[0], 0)[1]]
    for child in children[1:]:
        if os.WIFSIGNALED(statuses[0]):
            os.kill(child, signal.SIGKILL)
        statuses.append(os.waitpid(child, 0)[1])
    if any(os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, EXIT_INTERRUPTED) for status in statuses):
        raise RuntimeError(f"a training failed; see {output}.log")
    return any(statuses), progress.get()


def differences(expected, actual):
    """Lines about what differs between the outputs of two runs."""
    losses = [read_losses(output) for output in (expected, actual)]
    for iteration, loss in losses[0].items():
        if losses[1].get(iteration) != loss:
            yield f"losses of iteration {iteration}: {loss} and {losses[1].get(iteration)}"
    for name in ("metrics.json", "often.json"):
        lines = [read_metrics(os.path.join(output, name)) for output in (expected, actual)]
        # A training that is stopped writes what the next line would have replaced: more, but nothing else.
        more = {key: values[:1] for key, values in lines[1].items() if key not in lines[0]}
        yield from differing({**lines[0], **more}, lines[1], name)
    states = [torch.load(os.path.join(output, "model_final.pth"), weights_only=True) for output in (expected, actual)]
    for state in states:
        del state["trainer"]["metrics"], state["trainer"]["config"]
    yield from differing(*states, "checkpoint")


def read_losses(output):
    """The loss of each iteration. Those done again after a kill must have the same one."""
    losses = {}
    with open(f"{output}.losses") as file:
        for line in file:
            iteration, loss = json.loads(line)
            losses.setdefault(iteration, set()).add(loss)
    return losses


def read_metrics(path):
    """The metrics of each iteration but for times. None may be written twice."""
    metrics = {}
    with open(path) as file:
        for line in map(json.loads, file):
            iteration = line.pop("iteration")
            for key, value in line.items():
                if not re.search("time|eta|images_per_second|max_mem_mb", key):
                    metrics.setdefault(f"{iteration} {key}", []).append(repr(value))
    return metrics


def differing(a, b, name):
    if type(a) is not type(b):
        yield f"{name}: {a} and {b}"
    elif isinstance(a, dict):
        for key in {**a, **b}:
            yield from differing(a.get(key), b.get(key), f"{name}.{key}")
    elif isinstance(a, (list, tuple)):
        yield from differing(dict(enumerate(a)), dict(enumerate(b)), name)
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield f"{name}: {a} and {b}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--moments", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(args.seed)
    json_file, _ = write_pets(Path(args.folder))
    coco = json.loads(json_file.read_text())
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] % 3]  # the log has the share without boxes
    json_file.write_text(json.dumps(coco))
    expected, kills = os.path.join(args.folder, "uninterrupted"), 0
    started = time.time()
    run(args.folder, expected, args)
    seconds = time.time() - started
    found, trainings = [], 0
    while kills < (len(args.moments) or args.kills):
        actual = os.path.join(args.folder, f"killed_{trainings}")
        trainings += 1
        while True:
            if args.moments:
                moment, delay = args.moments[kills] if kills < len(args.moments) else None, None
            else:
                moment, delay = None, random.uniform(0.2, 0.6) * seconds if kills < args.kills else None
            killed, (phase, iteration) = run(args.folder, actual, args, moment=moment, delay=delay)
            if not killed:
                break
            kills += 1
            print(f"kill {kills}: {phase}, iteration {iteration}", flush=True)
        found += differences(expected, actual)
    print(f"{kills} kills in {trainings} trainings of {ITERATIONS} iterations, {args.processes} processes, "
          f"{args.workers} workers; differences: {len(found)}")  # fmt: skip
    for line in found:
        print(line if len(line) < 200 else f"{line[:200]}...")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
