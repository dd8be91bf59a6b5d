"""Trains one detector with every loss of the paper and several seeds, and compares them.

    python projects/LossAblation/ablation.py

Every training starts from the same backbone and, for a seed, the same head and order of images. What is done is not
done again: stop it at any time, and start it again with the same arguments.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from loss_ablation.report import write_report
from loss_ablation.rows import ROWS
from retina_plugin.core.files import atomic_write, atomic_write_text

HERE = Path(__file__).parents[1]
CONFIG = HERE / "configs" / "ablation.yaml"
DIGITS = HERE.parents[1] / "configs" / "digits.yaml"


def read_result(row, seed, args):
    """The result of :func:`run_once`, None if there is none yet.

    Raises:
        RuntimeError: the one that is there is of other settings.
    """
    result_file = _folder(row, seed, args) / "result.json"
    if not result_file.exists():
        return None
    result = json.loads(result_file.read_text())
    if result["arguments"] != _arguments(row, seed, args):
        raise RuntimeError(f"{result_file} is of other settings: give another --output, or delete it")
    return result


def run_once(row, seed, args):
    """Train, evaluate, and write result.json.

    Returns:
        dict: ``ap`` and ``ap50`` in percent, None if the loss became infinite or NaN; ``arguments`` of the run, its
        ``seconds`` and ``device``.

    Raises:
        RuntimeError: it failed in another way.
    """
    folder, arguments = _folder(row, seed, args), _arguments(row, seed, args)
    for left in [*folder.glob("metrics.json"), *folder.glob("last_checkpoint"), *folder.glob("model_*.pth")]:
        left.unlink()  # of a run that was stopped
    started = time.time()
    code, log = _train(CONFIG, [*arguments, "MODEL.WEIGHTS", args.output / "start.pth"], folder, args.jobs)
    if code == 0:
        metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        ap, ap50 = metrics[-1]["bbox/AP"], metrics[-1]["bbox/AP50"]
    elif "error: training diverged" in log:
        ap = ap50 = None
    else:
        raise RuntimeError(f"{row.name}, seed {seed} failed: {_last_line(log)}; see {folder / 'train.log'}")
    seconds = round(time.time() - started)
    result = {"ap": ap, "ap50": ap50, "arguments": arguments, "seconds": seconds, "device": device_name()}
    atomic_write_text(folder / "result.json", json.dumps(result, indent=1))
    for checkpoint in folder.glob("*.pth"):
        checkpoint.unlink()  # those of all runs are several GB
    return result


def _folder(row, seed, args):
    return args.output / row.slug / f"seed_{seed}"


def _arguments(row, seed, args):
    return [*row.overrides, *args.opts, "SEED", str(seed)]


def make_start(args):
    """The backbone that every run starts from: the one of configs/digits.yaml, trained with cross entropy.

    With the many digits of its images that works as well, and gives none of the compared losses but the paper's
    baseline an advantage.

    Raises:
        RuntimeError: its training failed, or the one that is there is of other settings.
    """
    start_file, folder = args.output / "start.pth", args.output / "start"
    cross_entropy = ["MODEL.RETINANET.CLS_LOSS", "cross_entropy", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1.0"]
    arguments = [*cross_entropy, *args.opts, "SEED", "0"]
    if start_file.exists():
        if torch.load(start_file, weights_only=True)["arguments"] != arguments:
            raise RuntimeError(f"{start_file} is of other settings: give another --output, or delete it")
        return
    print("Training the backbone that every run starts from", flush=True)
    code, log = _train(DIGITS, arguments, folder, jobs=1)
    if code:
        raise RuntimeError(f"that failed: {_last_line(log)}; see {folder / 'train.log'}")
    weights = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)["model"]
    backbone = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    atomic_write(start_file, lambda file: torch.save({"model": backbone, "arguments": arguments}, file))


def _train(config_file, overrides, folder, jobs):
    """Run train_net.py on its share of the cores; returns its exit code and output."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [HERE / "train_net.py", "--config-file", config_file, *overrides, "OUTPUT_DIR", folder]
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // jobs))
    with open(folder / "train.log", "w") as log:
        process = subprocess.run(
            [sys.executable, *map(str, command)], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    return process.returncode, (folder / "train.log").read_text()


def _last_line(log):
    return log.strip().rpartition("\n")[2]


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def run_all(args):
    """All rows with the first seed, then all rows with the next. Returns ``{row name: {seed: result}}``."""
    wanted = [(row, seed) for seed in args.seeds for row in ROWS]
    results = {row.name: {} for row in ROWS}
    for row, seed in wanted:
        results[row.name][seed] = read_result(row, seed, args)
    missing = [(row, seed) for row, seed in wanted if results[row.name][seed] is None]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} trainings are done", flush=True)
    started = time.time()
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_once, row, seed, args): (row, seed) for row, seed in missing}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                (row, seed), result = futures[future], future.result()
                results[row.name][seed] = result
                ap = "diverged" if result["ap"] is None else f"AP {result['ap']:.1f}, AP50 {result['ap50']:.1f}"
                left = (time.time() - started) / done * (len(missing) - done) / 60
                print(f"[{done}/{len(missing)}] {row.name}, seed {seed}: {ap}; about {left:.0f} min left", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/loss_ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    cores = 1 if torch.cuda.is_available() else os.cpu_count()
    parser.add_argument("--jobs", type=int, default=cores, help="trainings at a time (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., the same for every row")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        make_start(args)
        results = run_all(args)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    for path in write_report(args.output, CONFIG, args.opts, results):
        print(path)
    print((args.output / "results.md").read_text())
