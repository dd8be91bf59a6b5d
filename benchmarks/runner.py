"""Runs the cases of a benchmark and reports them."""

import gc
import importlib
import sys

import torch

from benchmarks import memory, options, report
from benchmarks.case import Disagreement
from benchmarks.pairing import clock_of, take_turns


def main(name, argv=None):
    """The command of a benchmark.

    Args:
        name: of its module, which has ``cases(args)``, a list of ``Case``, and ``add_options(parser)``.
        argv: words of the command line, by default the process's.

    Returns:
        dict: the raw figures, as ``--json`` writes them.
    """
    module = importlib.import_module(name)
    args = options.parse(module, argv)
    torch.set_num_threads(args.threads)
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
    results = {"benchmark": name.rpartition(".")[2], "environment": _environment(args), "cases": []}
    print(report.heading(results), flush=True)
    cases = module.cases(args)
    groups = [case.group for case in cases]
    known = {}
    try:
        for index, group in enumerate(groups):
            results["cases"].append(_run_case(name, args, index, cases[index], known))
            cases[index] = None  # with its inputs
            if group not in groups[index + 1 :]:
                print(report.table(results, group), flush=True)
    except Disagreement as error:
        sys.exit(f"error: {error}")
    report.write_files(results, args)
    return results


def _environment(args):
    gpu = args.device.type == "cuda"
    return {
        "device": args.device.type,
        "name": torch.cuda.get_device_name(args.device) if gpu else "CPU",
        "threads": args.threads,
        "torch": torch.__version__,
        "quick": args.quick,
    }


def _run_case(name, args, index, case, known):
    """Check, time and weigh all sides that fit; ``known``, side -> (scale, peak) of the largest case so far."""
    gpu = args.device.type == "cuda"
    reasons = {
        side: case.obstacle(side) or memory.shortage(case.scale, known.get(side), args.device) for side in case.sides
    }
    skipped = {side: reason for side, reason in reasons.items() if reason}
    sides = [side for side in case.sides if side not in skipped]
    peaks = {} if gpu else {side: memory.peak_of_case(name, args, index, side) for side in sides}

    steps = {side: case.step(side) for side in sides}
    _check(case, steps)
    times = take_turns(steps, rounds=args.rounds, warmup=case.warmup, seconds=args.seconds, clock=clock_of(args.device))
    if gpu:
        peaks = {side: memory.peak_of_step(step, args.device) for side, step in steps.items()}
    for side, peak in peaks.items():
        if peak is not None and case.scale >= known.get(side, (0, 0))[0]:
            known[side] = case.scale, peak
    del steps
    gc.collect()
    return {
        "group": case.group,
        "name": case.name,
        "reference": case.reference,
        "moved_bytes": case.moved_bytes,
        "sides": {
            side: {
                "seconds": times.get(side, []),
                "peak_bytes": peaks.get(side),
                "inherent_bytes": case.inherent_bytes(side),
                "floor": case.floors.get(side),
                "skipped": reasons[side],
            }
            for side in case.sides
        },
    }


def _check(case, steps):
    # One outcome beside the reference's at a time: they can be as large as the inputs.
    expected = _outcome(steps[case.reference]) if case.reference in steps else None
    for side, step in steps.items():
        outcome = _outcome(step) if side != case.reference else None
        if expected is not None and outcome:
            try:
                case.check(side, outcome, expected)
            except Disagreement as error:
                raise Disagreement(f"{case.group}, {case.name}: {side}: {error}") from None


def _outcome(step):
    step.prepare()
    return step.outcome(step.run())
