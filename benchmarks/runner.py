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
    """Check, time and weigh all implementations that fit; ``known`` maps each to (scale, peak) of the largest case."""
    gpu = args.device.type == "cuda"
    reasons = {
        impl: case.obstacle(impl) or memory.shortage(case.scale, known.get(impl), args.device)
        for impl in case.implementations
    }
    skipped = {impl: reason for impl, reason in reasons.items() if reason}
    implementations = [impl for impl in case.implementations if impl not in skipped]
    peaks = {} if gpu else {impl: memory.peak_of_case(name, args, index, impl) for impl in implementations}

    steps = {impl: case.step(impl) for impl in implementations}
    _check(case, steps)
    times = take_turns(steps, rounds=args.rounds, warmup=case.warmup, seconds=args.seconds, clock=clock_of(args.device))
    if gpu:
        peaks = {impl: memory.peak_of_step(step, args.device) for impl, step in steps.items()}
    for impl, peak in peaks.items():
        if peak is not None and case.scale >= known.get(impl, (0, 0))[0]:
            known[impl] = case.scale, peak
    del steps
    gc.collect()
    return {
        "group": case.group,
        "name": case.name,
        "reference": case.reference,
        "moved_bytes": case.moved_bytes,
        "implementations": {
            impl: {
                "seconds": times.get(impl, []),
                "peak_bytes": peaks.get(impl),
                "inherent_bytes": case.inherent_bytes(impl),
                "lower_bound": case.lower_bounds.get(impl),
                "skipped": reasons[impl],
            }
            for impl in case.implementations
        },
    }


def _check(case, steps):
    # One outcome beside the reference's at a time: they can be as large as the inputs.
    expected = _outcome(steps[case.reference]) if case.reference in steps else None
    for impl, step in steps.items():
        outcome = _outcome(step) if impl != case.reference else None
        if expected is not None and outcome:
            try:
                case.check(impl, outcome, expected)
            except Disagreement as error:
                raise Disagreement(f"{case.group}, {case.name}: {impl}: {error}") from None


def _outcome(step):
    step.prepare()
    return step.outcome(step.run())
