"""Bars of the ratios, one panel a group of cases."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.report import ratio_to_reference


def draw(results, path):
    """Draw the time of every side over the reference's, on a logarithmic axis.

    Args:
        results: the raw figures of a benchmark.
        path: of the picture, with the ending of a format that matplotlib writes.

    Returns:
        matplotlib ``Figure``.
    """
    groups = {}
    for case in results["cases"]:
        for side in case["sides"]:
            value = ratio_to_reference(case, side)
            if value is not None and side != case["reference"]:
                groups.setdefault(case["group"], []).append((f"{case['name']}: {side}", side, value))
    sides = list(dict.fromkeys(side for bars in groups.values() for _, side, _ in bars))
    reference = results["cases"][0]["reference"]

    figure = Figure(figsize=(9, 1 + sum(0.7 + 0.25 * len(bars) for bars in groups.values())), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2 + len(bars) for bars in groups.values()]
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (group, bars) in zip(panels, groups.items()):
        names, colours, values = zip(*bars)
        drawn = axes.barh(range(len(bars)), values, color=[f"C{sides.index(side) % 10}" for side in colours])
        axes.bar_label(drawn, fmt="%.2g", padding=2, fontsize=7)
        axes.set_yticks(range(len(bars)), names, fontsize=7)
        axes.set_title(group, fontsize=9, loc="left")
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[-1].set_xlabel(f"time over that of {reference} (line: equal), {results['environment']['name']}")
    figure.savefig(path, dpi=120)
    return figure
