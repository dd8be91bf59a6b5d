"""The paper's figures of the losses: do they show the formulas, and figure 7 the AP of each setting?"""

from functools import partial
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from PIL import Image

from retina_plugin.losses import SigmoidCrossEntropyLoss, SigmoidFocalLoss, SigmoidFocalStarLoss
from retina_plugin.tools.plot_losses import figures as loss_curves
from retina_plugin.tools.plot_losses.figures import draw_loss_curves, loss_curve

# The paper's formulas, for y = 1: value and derivative over x_t.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ce(x):
    return np.log1p(np.exp(-x)), -sigmoid(-x)


def fl(x, gamma):
    p, q = sigmoid(x), sigmoid(-x)
    return -(q**gamma) * np.log(p), q**gamma * (gamma * p * np.log(p) - q)


def fl_star(x, gamma, beta):
    return np.log1p(np.exp(-gamma * x - beta)) / gamma, -sigmoid(-gamma * x - beta)


def same(one, two):
    return np.allclose(one, two, rtol=1e-10, atol=1e-14)


def curves(figure):
    """``{label: (x, y)}`` of the figure's lines."""
    return {line.get_label(): line.get_data() for line in figure.axes[0].get_lines()}


def random_rows(num_rows=8):
    gammas, betas = np.random.uniform(0.5, 5, num_rows), np.random.uniform(-2, 2, num_rows)
    return [{"gamma": g, "beta": b, "ap": [ap]} for g, b, ap in zip(gammas, betas, np.random.uniform(30, 37, num_rows))]


FOCAL = [{"ap": [33.0, 34.0]}, {"ap": [33.8, 34.2]}, {"ap": [None]}]  # the best mean is 34.0


def settings_figure(rows):
    return loss_curves.focal_star_settings_figure(rows, FOCAL)


FIGURES = {
    "1": loss_curves.focal_loss_figure,
    "5": loss_curves.focal_star_figure,
    "6": loss_curves.derivatives_figure,
    "7": lambda: settings_figure(random_rows()),
}


# --- curves --------------------------------------------------------------


def test_a_curve_is_the_formula_and_its_derivative_point_by_point():
    x = np.random.uniform(-10, 10, 50)
    gamma, beta = np.random.uniform(0.5, 5), np.random.uniform(-2, 2)
    for loss, formula in [
        (SigmoidCrossEntropyLoss().loss, ce(x)),
        (SigmoidFocalLoss(gamma=gamma).loss, fl(x, gamma)),
        (SigmoidFocalStarLoss(gamma=gamma, beta=beta).loss, fl_star(x, gamma, beta)),
    ]:
        values, derivatives = loss_curve(loss, x)
        assert values.dtype == derivatives.dtype == np.float64
        assert same(values, formula[0]) and same(derivatives, formula[1])


def test_figure_1_shows_focal_loss_over_p_t_and_gamma_0_is_cross_entropy():
    shown = curves(FIGURES["1"]())
    labels = [r"$\gamma=0$ (CE)", r"$\gamma=0.5$", r"$\gamma=1$", r"$\gamma=2$", r"$\gamma=5$"]
    assert list(shown) == labels
    for label, gamma in zip(labels, [0, 0.5, 1, 2, 5]):
        p, values = shown[label]
        assert p.min() < np.exp(-5) and p.max() > 0.999  # from the upper edge to the lower right corner
        assert np.allclose(values, -((1 - p) ** gamma) * np.log(p), rtol=1e-9, atol=1e-12)
    p, values = shown[labels[0]]
    assert np.allclose(values, -np.log(p), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("number, column", [("5", 0), ("6", 1)])
def test_figures_5_and_6_show_values_and_derivatives_over_x_t(number, column):
    shown = curves(FIGURES[number]())
    formulas = {
        "CE": ce,
        r"FL, $\gamma=2$": partial(fl, gamma=2),
        r"FL*, $\gamma=2$, $\beta=1$": partial(fl_star, gamma=2, beta=1),
        r"FL*, $\gamma=4$, $\beta=0$": partial(fl_star, gamma=4, beta=0),
    }
    assert list(shown) == list(formulas)
    for label, (x, y) in shown.items():
        assert (x.min(), x.max()) == (-5, 5)
        assert same(y, formulas[label](x)[column])


@pytest.mark.parametrize(
    "number, title, x_label, y_label",
    [
        ("1", "Focal loss", "probability of ground truth class $p_t$", "loss"),
        ("5", "Focal loss and its alternate form FL*", "$x_t=yx$", "loss"),
        ("6", "Derivatives of the losses", "$x_t=yx$", "derivative with respect to $x_t$"),
        ("7", "Settings of FL* and the AP they reach", "$x_t=yx$", "FL*"),
    ],
)
def test_figures_say_what_they_show(number, title, x_label, y_label):
    axes = FIGURES[number]().axes[0]
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == (title, x_label, y_label)


@pytest.mark.parametrize("number", FIGURES)
def test_no_curve_runs_through_the_legend_or_a_text(number):
    figure = FIGURES[number]()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    legends = [axes.get_legend()] if axes.get_legend() else figure.legends
    boxes = [part.get_window_extent() for part in [*legends, *axes.texts]]
    assert boxes
    for line in axes.get_lines():
        points = axes.transData.transform(line.get_xydata())
        inside = axes.bbox.contains
        points = [point for point in points if inside(*point)]
        assert points and not any(box.contains(*point) for box in boxes for point in points)


# --- figure 7 ------------------------------------------------------------


def colors(figure):
    return [to_rgb(line.get_color()) for line in figure.axes[0].get_lines()]  # best AP first


def test_settings_within_half_a_point_of_focal_loss_are_blue_and_others_red():
    rows = random_rows(20)
    for (red, _, blue), ap in zip(colors(settings_figure(rows)), sorted((r["ap"][0] for r in rows), reverse=True)):
        assert (blue > red) == (ap > 33.5)


def test_colors_darken_with_the_distance_from_the_threshold():
    aps = np.random.permutation([33.6, 33.8, 34.2, 34.9, 33.4, 32.9, 32.0, 31.0])
    rows = [{**row, "ap": [ap]} for row, ap in zip(random_rows(), aps)]
    light = [sum(color) for color in colors(settings_figure(rows))]
    assert light[:4] == sorted(light[:4]) and light[4:] == sorted(light[4:], reverse=True)
    assert len(set(light)) == 8


def test_a_failed_setting_does_not_take_the_colors_from_the_others():
    rows = [{**row, "ap": [ap]} for row, ap in zip(random_rows(), [33.0, 31.0, 29.0, 0.0])]
    light = [sum(color) for color in colors(settings_figure(rows))]
    assert light[0] - light[1] > 0.2 and light[1] - light[2] > 0.2


def test_curves_of_figure_7_are_fl_star_and_named_with_the_mean_ap_best_first():
    rows = [
        {"gamma": 4, "beta": 0, "ap": [None, None]},
        {"gamma": 1.5, "beta": -2.0, "ap": [30.0, 31.0]},
        {"gamma": 2.0, "beta": 1.0, "ap": [33.0, None, 34.5]},
    ]
    figure = settings_figure(rows)
    labels = ["(2, 1): 33.8 (2 of 3 runs)", "(1.5, −2): 30.5", "(4, 0): none"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    for label, row in zip(labels, reversed(rows)):
        x, y = curves(figure)[label]
        assert same(y, fl_star(x, row["gamma"], row["beta"])[0])
    red, green, blue = colors(figure)[2]
    assert red == green == blue
    assert figure.axes[1].get_xlabel() == "AP minus that of focal loss, 34.0 (blue: at most 0.5 below)"


def test_a_gamma_that_fl_star_refuses_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="gamma must be a finite number > 0"):
        draw_loss_curves(tmp_path / "figures", ([{"gamma": 0, "beta": 1, "ap": [1.0]}], FOCAL))
    assert not (tmp_path / "figures").exists()


# --- files ---------------------------------------------------------------

ABLATION = [{"gamma": 2, "beta": 1, "ap": [33.8]}, {"gamma": 1, "beta": 0, "ap": [31.0]}], FOCAL


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return draw_loss_curves(tmp_path_factory.mktemp("loss_curves") / "new" / "folder", ABLATION)


def test_writes_each_figure_as_png_and_svg(files):
    stems = ["figure1_focal_loss", "figure5_focal_star", "figure6_derivatives", "figure7_focal_star_settings"]
    assert [path.name for path in files] == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")]
    assert sorted(files[0].parent.iterdir()) == sorted(files)
    for png, svg in zip(files[::2], files[1::2]):
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert png.stat().st_size < 300_000
        with Image.open(png) as image:
            assert (image.format, image.size) == ("PNG", (1200, 800))


def test_writes_the_same_bytes_whatever_matplotlibs_settings_and_leaves_those_alone(files, tmp_path):
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "other", "figure.dpi": 40}):
        before = dict(matplotlib.rcParams)
        again = draw_loss_curves(tmp_path, ABLATION)
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]
    assert not pyplot.get_fignums()
