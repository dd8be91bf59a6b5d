"""Tables and files of the raw figures."""

import json
import statistics

from benchmarks.pairing import ratio


def heading(results):
    """What the figures are of, and what they are good for."""
    environment = results["environment"]
    where = f"{environment['name']}, {environment['threads']} CPU threads, torch {environment['torch']}"
    lines = [f"# {results['benchmark']} ({where})"]
    if environment["device"] == "cpu":
        lines.append("Ratios matter; times are of this machine and this moment.")
    if environment["quick"]:
        lines.append("--quick: these inputs are so small that the figures mean nothing.")
    return "\n".join(lines)


def table(results, group):
    """Markdown table of the cases of a group, with the reasons for what is missing below it."""
    cases = [case for case in results["cases"] if case["group"] == group]
    bandwidth = results["environment"]["device"] == "cuda" and any(case["moved_bytes"] for case in cases)
    header = ["case", "implementation", f"/ {cases[0]['reference']}", "/ lower bound", "peak MB", "ms"]
    rows, notes = [], []
    for case in cases:
        for impl, figures in case["implementations"].items():
            if figures["skipped"]:
                notes.append(f"Left out: {impl}, {case['name']}: {figures['skipped']}.")
                continue
            row = [
                case["name"],
                impl,
                _number(ratio_to_reference(case, impl)),
                _number(ratio_to_lower_bound(case, impl)),
                _megabytes(figures),
                _milliseconds(figures),
            ]
            if bandwidth:
                row.append(_bandwidth(case, impl))
            rows.append(row)
    if bandwidth:
        header.append("bandwidth")
    return "\n".join([f"\n## {group}\n", *_aligned(header, rows), *([""] if notes else []), *notes])


def ratio_to_reference(case, impl):
    """Median over the rounds of the implementation's time over the reference's; None where one of them did not run."""
    return ratio(case["implementations"][impl]["seconds"], case["implementations"][case["reference"]]["seconds"])


def ratio_to_lower_bound(case, impl):
    """Median over the rounds of the implementation's time over its lower bound's; None where there is none."""
    lower_bound = case["implementations"][impl]["lower_bound"]
    return lower_bound and ratio(
        case["implementations"][impl]["seconds"], case["implementations"][lower_bound]["seconds"]
    )


def _number(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _megabytes(figures):
    if figures["peak_bytes"] is None:
        return "-"
    return f"{(figures['peak_bytes'] - figures['inherent_bytes']) / 1e6:.0f}"


def _milliseconds(figures):
    return f"{1000 * statistics.median(figures['seconds']):.4g}"


def _bandwidth(case, impl):
    """Achieved GB/s and, as the lower bound is a copy that moves as many bytes, its share of what a copy achieves."""
    seconds, share = case["implementations"][impl]["seconds"], ratio_to_lower_bound(case, impl)
    achieved = f"{case['moved_bytes'] / statistics.median(seconds) / 1e9:.4g} GB/s"
    return f"{achieved} ({100 / share:.0f} %)" if share else achieved


def _aligned(header, rows):
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    text = 2  # columns of words; numbers stand at the right
    lines = [
        "| " + " | ".join(c.ljust(w) if i < text else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))) + " |"
        for cells in [header, *rows]
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < text else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


def write_files(results, args):
    """Write what ``--json`` and ``--plot`` ask for."""
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)
    if args.plot:
        from benchmarks.plot import draw  # matplotlib takes a while

        draw(results, args.plot)
