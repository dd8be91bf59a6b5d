"""The figures of the paper about losses (Lin et al. 2017: figure 1, and 5 to 7 of appendix A).

Every curve is the formula of a loss of :mod:`retina_plugin.losses`, in float64, and every derivative is autograd's: the
figures show what trains.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from retina_plugin.core.files import atomic_write
from retina_plugin.losses import SigmoidCrossEntropyLoss, SigmoidFocalLoss, SigmoidFocalStarLoss
from retina_plugin.losses.functional import PointwiseLoss
from retina_plugin.tools.plot_losses.ablation import Row

Line = dict[str, Any]  # arguments of Axes.plot

# Colors of Okabe and Ito, and a purple of Tol's: apart for color-blind readers. The dashes keep them apart in gray.
_INK = "#222222"
_DASHES = ["-", (0, (7, 1.5)), (0, (3, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (1.2, 1))]
_CE_LINE: Line = {"color": _INK, "linestyle": _DASHES[0]}
_FL_LINE: Line = {"color": "#0072B2", "linestyle": _DASHES[1]}
_PURPLE_LINE: Line = {"color": "#AA4499", "linestyle": _DASHES[2]}
_ORANGE_LINE: Line = {"color": "#D55E00", "linestyle": _DASHES[3]}
_GREEN_LINE: Line = {"color": "#009E73", "linestyle": _DASHES[4]}

_WELL_CLASSIFIED = "#EEF3F7"
_QUIET = "#5B6670"
_STYLE: dict[str, Any] = {
    "figure.figsize": (6, 4),
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "svg.hashsalt": "retina_plugin",  # the same file at every run
    "font.size": 10,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _QUIET,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#D5DADE",
    "grid.linewidth": 0.6,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 2,
    "legend.facecolor": _WELL_CLASSIFIED,
    "legend.edgecolor": "none",
    "legend.framealpha": 1,
    "legend.handlelength": 2.8,
}
# Over the defaults of matplotlib, not the matplotlibrc of the user.
_STYLES: list[str | dict[str, Any]] = ["default", _STYLE]

_X_T = np.linspace(-5, 5, 201)
_CURVES = {
    "CE": (SigmoidCrossEntropyLoss().loss, _CE_LINE),
    r"FL, $\gamma=2$": (SigmoidFocalLoss(gamma=2.0).loss, _FL_LINE),
    r"FL*, $\gamma=2$, $\beta=1$": (SigmoidFocalStarLoss(gamma=2.0, beta=1.0).loss, _ORANGE_LINE),
    r"FL*, $\gamma=4$, $\beta=0$": (SigmoidFocalStarLoss(gamma=4.0, beta=0.0).loss, _GREEN_LINE),
}

EFFECTIVE_WITHIN = 0.5  # AP points below focal loss: the paper calls a setting effective above 33.5, with FL at 34.0
_NO_AP = "#A8A8A8"
_REDS_AND_BLUES = LinearSegmentedColormap.from_list(
    "effective", [(0, "#8E0B1F"), (0.5, "#F4977A"), (0.5, "#6FAFDB"), (1, "#08306B")]
)


def draw_loss_curves(output_dir: str | Path, ablation: tuple[list[Row], list[Row]] | None = None) -> list[Path]:
    """Write figures 1, 5, 6 and, given the arguments of :func:`focal_star_settings_figure`, 7, each as PNG and SVG.

    Raises:
        ValueError: a setting of FL* is out of its range; no file is written.
    """
    figures = {
        "figure1_focal_loss": focal_loss_figure(),
        "figure5_focal_star": focal_star_figure(),
        "figure6_derivatives": derivatives_figure(),
    }
    if ablation is not None:
        figures["figure7_focal_star_settings"] = focal_star_settings_figure(*ablation)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    with style.context(_STYLES):
        for name, figure in figures.items():
            for suffix in ("png", "svg"):
                paths.append(output_dir / f"{name}.{suffix}")
                atomic_write(paths[-1], partial(figure.savefig, format=suffix, metadata={"Date": None}))
    return paths


def loss_curve(loss: PointwiseLoss, x_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute a loss and its derivative with respect to x_t = y x: float arrays (P,) -> float64 arrays (P,)."""
    points = torch.tensor(x_t, dtype=torch.float64, requires_grad=True)
    values = loss(points)
    (derivatives,) = torch.autograd.grad(values.sum(), points)
    return values.detach().numpy(), derivatives.numpy()


@style.context(_STYLES)
def focal_loss_figure() -> Figure:
    """Draw figure 1: focal loss over p_t for five gammas."""
    figure = Figure()
    axes = figure.add_subplot()
    x_t = np.linspace(-5.5, 8, 201)
    p_t = 1 / (1 + np.exp(-x_t))
    lines = {0.0: _CE_LINE, 0.5: _ORANGE_LINE, 1.0: _PURPLE_LINE, 2.0: _FL_LINE, 5.0: _GREEN_LINE}
    for gamma, line in lines.items():
        values, _ = loss_curve(SigmoidFocalLoss(gamma=gamma).loss, x_t)
        axes.plot(p_t, values, label=rf"$\gamma={gamma:g}$" + (" (CE)" if gamma == 0 else ""), **line)
    axes.set(xlim=(0, 1), ylim=(0, 5), xlabel="probability of ground truth class $p_t$", ylabel="loss")
    axes.set_title("Focal loss")
    _shade_well_classified(axes, 0.5, 1, y=1.15)
    formulas = "$\\mathrm{CE}(p_t)=-\\log(p_t)$\n$\\mathrm{FL}(p_t)=-(1-p_t)^\\gamma\\,\\log(p_t)$"
    axes.text(0.13, 4.85, formulas, va="top", linespacing=1.5, bbox={"color": "white", "pad": 2})
    axes.legend(loc="upper right")
    return figure


def focal_star_figure() -> Figure:
    """Draw figure 5: CE, FL and FL* over x_t."""
    return _draw_curves(0, "Focal loss and its alternate form FL*", "loss", ylim=(0, 5), arrow=1.15)


def derivatives_figure() -> Figure:
    """Draw figure 6: the derivatives of figure 5's losses."""
    ylabel = "derivative with respect to $x_t$"
    return _draw_curves(1, "Derivatives of the losses", ylabel, ylim=(-1.2, 0.05), arrow=-0.7)


@style.context(_STYLES)
def _draw_curves(derivative: int, title: str, ylabel: str, ylim: tuple[float, float], arrow: float) -> Figure:
    figure = Figure()
    axes = figure.add_subplot()
    for label, (loss, line) in _CURVES.items():
        axes.plot(_X_T, loss_curve(loss, _X_T)[derivative], label=label, **line)
    axes.set(xlim=(-5, 5), ylim=ylim, xlabel="$x_t=yx$", ylabel=ylabel)
    axes.set_title(title)
    _shade_well_classified(axes, 0, 5, y=arrow)
    axes.legend(loc="lower right" if derivative else "upper right")
    return figure


def _shade_well_classified(axes: Axes, start: float, end: float, y: float) -> None:
    axes.axvspan(start, end, color=_WELL_CLASSIFIED, lw=0, zorder=0)
    axes.annotate(
        "", (start, y), (end, y), arrowprops={"arrowstyle": "<->", "color": _QUIET, "shrinkA": 0, "shrinkB": 0}
    )
    middle = (start + end) / 2
    axes.annotate(
        "well-classified\nexamples",
        (middle, y),
        (0, 6),
        textcoords="offset points",
        ha="center",
        color=_QUIET,
        bbox={"color": _WELL_CLASSIFIED, "pad": 1},
    )


@style.context(_STYLES)
def focal_star_settings_figure(focal_star_rows: list[Row], focal_rows: list[Row]) -> Figure:
    """Draw figure 7: FL* over x_t, colored by the AP that training with it reached.

    Settings at most ``EFFECTIVE_WITHIN`` below focal loss, the effective ones, are blue, worse ones red, those without
    AP gray.

    Args:
        focal_star_rows: list of ``{"gamma": 2.0, "beta": 1.0, "ap": [33.8, None]}``, with AP in percent, one a seed,
            None for a run that has none. Means are over the runs that have one.
        focal_rows: list of ``{"ap": [...]}``, of which one has an AP. The best is what the colors compare with.

    Raises:
        ValueError: gamma or beta is out of its range.
    """
    figure = Figure(figsize=(6, max(4, 1 + 0.17 * len(focal_star_rows))))  # one line each in the legend
    axes = figure.add_subplot()
    focal_ap = max(ap for row in focal_rows if (ap := _mean_ap(row)) is not None)
    aps = [_mean_ap(row) for row in focal_star_rows]
    norm = _ap_norm([ap - focal_ap for ap in aps if ap is not None])
    best_first = sorted(zip(aps, focal_star_rows), key=lambda pair: (pair[0] is not None, pair[0]), reverse=True)
    for i, (ap, row) in enumerate(best_first):
        loss = SigmoidFocalStarLoss(gamma=row["gamma"], beta=row["beta"]).loss
        axes.plot(
            _X_T,
            loss_curve(loss, _X_T)[0],
            color=_NO_AP if ap is None else _REDS_AND_BLUES(norm(ap - focal_ap)),
            linestyle=_DASHES[i % len(_DASHES)],
            linewidth=1.6,
            label=_describe(row, ap),
            zorder=3 - i / len(focal_star_rows),  # the best on top
        )
    axes.set(xlim=(-5, 5), ylim=(0, 5), xlabel="$x_t=yx$", ylabel="FL*")
    axes.set_title("Settings of FL* and the AP they reach")
    figure.legend(
        title=r"$(\gamma, \beta)$: AP", loc="outside right upper", fontsize="small", alignment="left", frameon=False
    )
    bar = figure.colorbar(
        ScalarMappable(norm, _REDS_AND_BLUES),
        ax=axes,
        location="bottom",
        aspect=35,
        extend="both",
        ticks=norm.inverse(np.linspace(0, 1, 5)),
        format="{x:+.2g}",
    )
    bar.set_label(
        f"AP minus that of focal loss, {focal_ap:.1f} (blue: at most {EFFECTIVE_WITHIN:g} below)", size="small"
    )
    bar.outline.set_visible(False)
    return figure


def _ap_norm(gains: list[float]) -> TwoSlopeNorm:
    """Reds below -EFFECTIVE_WITHIN, blues above, each over 1 to 5 points: a run that failed leaves others a color."""
    center = -EFFECTIVE_WITHIN
    below = np.clip(center - min(gains, default=0), 1, 5)
    above = np.clip(max(gains, default=0) - center, 1, 5)
    return TwoSlopeNorm(center, center - below, center + above)


def _describe(row: Row, ap: float | None) -> str:
    setting = f"({row['gamma']:g}, {row['beta']:g}): ".replace("-", "\N{MINUS SIGN}")
    if ap is None:
        return setting + "none"
    num_runs = len(row["ap"])
    num_aps = num_runs - row["ap"].count(None)
    return setting + f"{ap:.1f}" + (f" ({num_aps} of {num_runs} runs)" if num_aps < num_runs else "")


def _mean_ap(row: Row) -> float | None:
    """Mean over the seeds that have an AP; None if none has."""
    aps = [ap for ap in row["ap"] if ap is not None]
    return sum(aps) / len(aps) if aps else None
