"""What is compared: a row is a loss with its settings, and what the paper reports for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: as printed.
        options: ``MODEL.RETINANET`` keys and their values; all else is the same for all rows.
        paper: AP of the paper on COCO, None where it gives no number.
        source: where the paper says so.
    """

    name: str
    options: dict
    paper: float | None
    source: str

    @property
    def slug(self):
        """Name of the row's folder."""
        return "".join(c if c.isalnum() or c == "." else "_" for c in self.name)

    @property
    def overrides(self):
        """``[KEY, VALUE, ...]`` for train_net.py."""
        return [str(word) for key, value in self.options.items() for word in (f"MODEL.RETINANET.{key}", value)]


def _cross_entropy(alpha, prior=0.01):
    return {"CLS_LOSS": "cross_entropy", "FOCAL_LOSS_ALPHA": alpha, "PRIOR_PROB": prior}


def _focal(gamma, alpha):
    return {"CLS_LOSS": "focal", "FOCAL_LOSS_ALPHA": alpha, "FOCAL_LOSS_GAMMA": gamma}


def _focal_star(gamma, beta):
    return {
        "CLS_LOSS": "focal_star",
        "FOCAL_LOSS_ALPHA": 0.25,
        "FOCAL_STAR_GAMMA": gamma,
        "FOCAL_STAR_BETA": beta,
    }


def _ohem(name):
    return {"CLS_LOSS": name, "FOCAL_LOSS_ALPHA": -1.0, "OHEM_BATCH_SIZE": 128, "OHEM_NMS_THRESH": 0.5}


OFF = -1.0  # no weighting

ROWS = [
    Row("CE, no prior", _cross_entropy(OFF, prior=0.5), None, "section 5.1: fails quickly"),
    Row("CE", _cross_entropy(OFF), 30.2, "Table 1a"),
    Row("CE, alpha 0.25", _cross_entropy(0.25), 10.8, "Table 1a"),
    Row("CE, alpha 0.75", _cross_entropy(0.75), 31.1, "Table 1a"),
    Row("CE, alpha 0.9", _cross_entropy(0.9), 30.8, "Table 1a"),
    Row("FL, gamma 0.5, alpha 0.5", _focal(0.5, 0.5), 32.9, "Table 1b"),
    Row("FL, gamma 1, alpha 0.25", _focal(1.0, 0.25), 33.7, "Table 1b"),
    Row("FL, gamma 2, alpha 0.25", _focal(2.0, 0.25), 34.0, "Table 1b"),
    Row("FL, gamma 5, alpha 0.25", _focal(5.0, 0.25), 32.2, "Table 1b"),
    Row("FL*, gamma 2, beta 1", _focal_star(2.0, 1.0), 33.8, "Table 3"),
    Row("FL*, gamma 4, beta 0", _focal_star(4.0, 0.0), 33.9, "Table 3"),
    Row("FL*, gamma 1, beta 1", _focal_star(1.0, 1.0), None, "Figure 7, without numbers"),
    Row("FL*, gamma 2, beta 0", _focal_star(2.0, 0.0), None, "Figure 7, without numbers"),
    Row("FL*, gamma 4, beta 2", _focal_star(4.0, 2.0), None, "Figure 7, without numbers"),
    Row("OHEM", _ohem("ohem"), 32.8, "Table 1d (R-101, where FL has 36.0)"),
    Row("OHEM 1:3", _ohem("ohem_1to3"), 31.1, "Table 1d (R-101, where FL has 36.0)"),
    Row("hinge on p_t", {"CLS_LOSS": "hinge", "FOCAL_LOSS_ALPHA": OFF}, None, "section 5.1: no meaningful results"),
]
