"""Measures training steps with one and two processes on a CPU: forward, backward and all-reduce of the gradients."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

import torch
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks import inputs, models, options, report
from benchmarks.case import Step
from benchmarks.pairing import clock_of, ratio, take_turns

# Implementation -> number of processes, threads per process, whether gradients are averaged.
IMPLEMENTATIONS = {
    "1 process, 1 thread": (1, 1, False),
    "1 process, 2 threads": (1, 2, False),
    "2 processes, 1 thread each": (2, 1, True),
    "2 processes, gradients not averaged": (2, 1, False),
}
REFERENCE, TWO_THREADS, TWO, ALONE = IMPLEMENTATIONS


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--images", type=int, default=1, help="images per process, by default 1")
    options.sizes(parser, quick, default=[400])


class ProcessPair:
    """Runs steps in two processes, each with the same detector.

    Args:
        size: length of the images' shorter edge, in pixels.
        images: images per process.
        network: KEY, VALUE, ... overrides of the configuration.
    """

    def __init__(self, size: int, images: int, network: Sequence) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._ends, self._processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            arguments = (rank, theirs, f"{self._folder.name}/init", size, images, network)
            self._processes.append(context.Process(target=_work, args=arguments, daemon=True))
            self._processes[-1].start()
            theirs.close()
            self._ends.append(ours)
        for end in self._ends:
            end.recv()  # ready

    def run(self, impl: str) -> None:
        """Run one step of an implementation. A process that the implementation does not use sleeps."""
        count, threads, averaged = IMPLEMENTATIONS[impl]
        for end in self._ends[:count]:
            end.send((threads, count > 1, averaged))
        for end in self._ends[:count]:
            end.recv()

    def close(self) -> None:
        """End the processes."""
        for end, process in zip(self._ends, self._processes):
            end.send(None)
            process.join()
        self._folder.cleanup()


def _work(rank, pipe, init_file, size, images, network):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    cfg = models.plugin_config("cpu", network)
    model = models.build(cfg, models.weights(network)).train()
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    batch = inputs.batch(size, images=images, boxes=20, num_classes=cfg.MODEL.RETINANET.NUM_CLASSES)
    pipe.send("ready")
    while order := pipe.recv():
        threads, several, averaged = order
        torch.set_num_threads(threads)
        parallel.zero_grad(set_to_none=True)
        with EventStorage(), contextlib.nullcontext() if averaged else parallel.no_sync():
            sum((parallel if several else model)(batch).values()).backward()
        pipe.send("done")
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark. Returns the raw figures, as ``--json`` writes them."""
    args = options.parse(sys.modules[__name__], argv)
    if args.device.type != "cpu":
        sys.exit("error: this command measures processes on a CPU; on GPUs, compare the img/s of two trainings")
    network = models.SMALL if args.quick else ()
    environment = {"device": "cpu", "name": "CPU", "threads": 2, "torch": torch.__version__, "quick": args.quick}
    results = {"benchmark": "scaling", "environment": environment, "cases": []}
    print(report.heading(results), flush=True)
    for size in args.sizes:
        pair = ProcessPair(size, args.images, network)
        try:
            steps = {name: Step(partial(pair.run, name)) for name in IMPLEMENTATIONS}
            clock = clock_of(args.device)
            seconds = take_turns(steps, rounds=args.rounds, warmup=1, seconds=args.seconds, clock=clock)
        finally:
            pair.close()
        results["cases"].append(_case(inputs.shape_name(size), seconds))
        print(_images_per_second(results["cases"][-1], args.images))
    print(report.table(results, "step"))
    report.write_files(results, args)
    return results


def _case(name, seconds):
    lower_bounds = {TWO: ALONE}
    common = {"peak_bytes": None, "inherent_bytes": 0, "skipped": None}
    implementations = {
        impl: {"seconds": times, "lower_bound": lower_bounds.get(impl), **common} for impl, times in seconds.items()
    }
    return {"group": "step", "name": name, "reference": REFERENCE, "moved_bytes": 0, "implementations": implementations}


def _images_per_second(case, images):
    """Format the throughput of two processes relative to one, from the ratios of the rounds."""
    seconds = {impl: figures["seconds"] for impl, figures in case["implementations"].items()}
    lines = [f"\n{case['name']}, {images} image(s) a process; images per second of 2 processes with 1 thread each over"]
    for other in (REFERENCE, TWO_THREADS):
        lines.append(f"- {other}: {2 * ratio(seconds[other], seconds[TWO]):.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
