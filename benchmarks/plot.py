"""Bars of the ratios, those of a group of cases below its title."""

from itertools import groupby

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from benchmarks.report import ratio_to_reference

TICKS = [1 / 1000, 1 / 500, 1 / 200, 1 / 100, 1 / 50, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1, 2, 5, 10, 20, 50, 100]


def draw(results, path):
    """Draw the time of every implementation over the reference's as bars from 1, faster ones to the left, logarithmic.

    Args:
        results: the raw figures of a benchmark.
        path: of the image, with the ending of a format that matplotlib writes.

    Returns:
        matplotlib ``Figure``.
    """
    rows = []  # (name, implementation, value) a bar, or (title, None, None)
    for group, cases in groupby(results["cases"], lambda case: case["group"]):
        cases = list(cases)
        rows.append((group if len(cases) > 1 else f"{group}: {cases[0]['name']}", None, None))
        for case in cases:
            for impl in case["implementations"]:
                value = ratio_to_reference(case, impl)
                if value is not None and impl != case["reference"]:
                    rows.append(
                        (
                            impl if len(cases) == 1 else f"{case['name']}: {impl}",
                            impl,
                            value,
                        )
                    )
    bars = [(y, impl, value) for y, (_, impl, value) in enumerate(rows) if impl]
    implementations = list(dict.fromkeys(impl for _, impl, _ in bars))
    values = [value for _, _, value in bars]

    figure = Figure(figsize=(8, 1 + 0.24 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    for y, impl, value in bars:
        axes.barh(y, value - 1, left=1, color=f"C{implementations.index(impl) % 10}")
        offset, alignment = (-3, "right") if value < 1 else (3, "left")
        axes.annotate(f"{value:.2g}", (value, y), (offset, 0), textcoords="offset points", ha=alignment, va="center")
    axes.axvline(1, color="black", linewidth=1)
    least, most = min(*values, 0.9), max(*values, 1.1)
    space = 1.2 * (most / least) ** 0.15  # for the numbers
    axes.set_xlim(least / space, most * space)
    axes.set_xticks([tick for tick in TICKS if axes.get_xlim()[0] < tick < axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    for label, (_, impl, _) in zip(axes.get_yticklabels(), rows):
        label.set_fontweight("normal" if impl else "bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    reference, where = results["cases"][0]["reference"], results["environment"]["name"]
    axes.set_xlabel(f"time over that of {reference} on this {where}")
    figure.savefig(path, dpi=100)
    return figure
