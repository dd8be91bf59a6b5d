"""Which examples the focal loss of a trained detector comes from (Lin et al. 2017, section 5.1, figure 4).

    python projects/LossDistribution/plot.py output/digits

runs the detector over a test set and samples x_t, the signed logit, of positives and negatives. An example is an anchor
and a class, as in the loss; ignored anchors are left out. Each gamma gives every example a loss, and the image shows
what the easiest part of the examples adds up to. Alpha is off, also if the detector was trained with it: one weight for
all positives and one for all negatives changes nothing, as the losses of each side are divided by their sum.

N images, R anchors, K classes.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from matplotlib import rc_context
from matplotlib.figure import Figure
from tqdm import tqdm

from retina_plugin.checkpoint import RetinaCheckpointer
from retina_plugin.config import add_config_arguments
from retina_plugin.config.checks import builds_focal_retinanet
from retina_plugin.core.errors import UserError, format_error
from retina_plugin.data.dataset_checks import check_class_count
from retina_plugin.engine import argument_parser, load_config
from retina_plugin.losses.functional import compute_x_t, pointwise_focal

GAMMAS = (0, 0.5, 1, 2)
HARDEST = {"positives": 0.2, "negatives": 0.01}  # the part of the examples whose share of the loss is reported
COLOURS = ("#f6a13c", "#d7301f", "#7a0177", "#0b1d51")  # of the gammas, ever darker: told apart in gray as well


class Reservoir:
    """A uniform sample, without replacement, of everything added so far (Vitter 1985, algorithm R).

    What is kept depends on the seed and on the order of the values, not on how they are split into calls.
    """

    def __init__(self, capacity, seed):
        self._slots = np.empty(capacity, dtype=np.float32)
        self._rng = np.random.default_rng(seed)
        self.seen = 0

    def add(self, values):
        """values: (n,)"""
        index = np.arange(self.seen, self.seen + len(values))
        # Value i takes a random one of i + 1 slots; if that is beyond the capacity, the value is dropped.
        slots = np.where(index < len(self._slots), index, self._rng.integers(index + 1))
        kept = slots < len(self._slots)
        self._slots[slots[kept]] = values[kept]  # of several values for a slot the last one stays, as one by one
        self.seen += len(values)

    @property
    def values(self):
        return self._slots[: self.seen]


def cumulative_loss(x_t, gamma):
    """The share of the total loss that the i easiest of n examples have, for i = 0..n.

    Args:
        x_t: (n,), n > 0, in any order.

    Returns:
        float64 (n + 1,), from 0 to 1.
    """
    # The loss falls with x_t, whatever gamma is. From p_t = sigmoid(x_t) in float32, that of easy examples would be 0.
    easiest_first = torch.from_numpy(np.sort(x_t)[::-1].astype(np.float64))
    loss = pointwise_focal(gamma)(easiest_first).numpy()
    cumulative = np.concatenate([[0.0], np.cumsum(loss)])
    return cumulative / cumulative[-1]


def share_of_hardest(cumulative, fraction):
    """The share of the total loss that the hardest ``fraction`` of the examples has, linear between examples."""
    return float(1 - np.interp(1 - fraction, np.linspace(0, 1, len(cumulative)), cumulative))


@torch.no_grad()
def collect(model, loader, positives, negatives):
    """Add x_t of every positive and every negative that the classification loss counts to two reservoirs.

    Args:
        model: a ``FocalRetinaNet`` in evaluation mode.
        loader: yields batches as in training, images without a box included.

    Raises:
        ValueError: a logit that is not finite.
    """
    for batch in tqdm(loader, unit="image", disable=None):  # silent unless a person watches
        logits = torch.cat([x.flatten(1, 3) for x in model.raw_predictions(batch).logits], dim=1)  # (N, R, K)
        x_t, is_class = compute_x_t(logits, model.assign(batch).labels)
        if not x_t.isfinite().all():
            raise ValueError(f"the weights give logits that are not finite on {batch[0]['file_name']}: did it diverge?")
        positives.add(x_t[is_class].cpu().numpy())
        negatives.add(x_t[~is_class].cpu().numpy())


def build_loader(cfg, dataset_name):
    """The images of a data set as in testing, with their boxes, one a batch.

    Raises:
        ConfigError: its classes are not those of the model.
        ValueError: no image has a box.
    """
    # An empty list says that there is no object. Without a list, nobody knows.
    records = [record for record in DatasetCatalog.get(dataset_name) if "annotations" in record]
    check_class_count(cfg, dataset_name)
    if not any(record["annotations"] for record in records):
        raise ValueError(f"data set '{dataset_name}' has no boxes, so no anchor is positive: name another one")
    mapper = DatasetMapper(
        is_train=True,  # keeps the annotations
        augmentations=build_augmentation(cfg, is_train=False),
        image_format=cfg.INPUT.FORMAT,
    )
    return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def load_model(cfg, weights):
    """Build the configured detector, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is no checkpoint, or one of another model.
    """
    if not weights.is_file():
        raise FileNotFoundError(f"no weights {weights}: let the training finish, or name a checkpoint with --weights")
    model = build_model(cfg)
    RetinaCheckpointer(model, strict=True).load(str(weights))
    return model.eval()


def draw(curves, path):
    """Draw figure 4 of the paper, as a PNG and an SVG.

    Args:
        curves: {"positives": {gamma: :func:`cumulative_loss`}, "negatives": the same}.
        path: of the images, without the suffix.
    """
    # Far fewer points than examples, close together near 1, where the curves are steep.
    x = np.unique(np.concatenate([np.linspace(0, 1, 401), 1 - np.geomspace(1e-6, 1, 401)]))
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "4"}):
        figure = Figure(figsize=(7, 3.1), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, kind, ground in zip(panels, curves, ("foreground", "background")):
            for (gamma, cumulative), color in zip(curves[kind].items(), COLOURS):
                y = np.interp(x, np.linspace(0, 1, len(cumulative)), cumulative)
                axes.plot(x, y, color=color, linewidth=1.8, clip_on=False, label=rf"$\gamma = {gamma:g}$")
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"fraction of {ground} examples")
            axes.set_title(f"{len(cumulative) - 1:,} {kind}", fontsize=9, color="0.35")
            axes.grid(color="0.92", linewidth=0.6)
        panels[0].set_ylabel("cumulative normalized loss")
        panels[0].legend(frameon=False, loc="upper left")  # no curve goes there: the hardest come last
        figure.savefig(path.with_suffix(".png"), dpi=200)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})  # the same bytes every time


def print_table(shares):
    """shares: {"positives": {gamma: share}, "negatives": the same}"""
    titles = [f"hardest {HARDEST[kind]:.0%} of {kind}" for kind in shares]
    print("Share of the focal loss that comes from the")
    print("gamma", *titles, sep="  ")
    for gamma in GAMMAS:
        cells = [f"{shares[kind][gamma]:.1%}".rjust(len(title)) for kind, title in zip(shares, titles)]
        print(f"{gamma:5g}", *cells, sep="  ")


def read_config(args):
    """The configuration of the training, checked as for an evaluation on ``--dataset``.

    Raises:
        ConfigError, ValueError: it cannot be used.
    """
    config_file = args.output_dir / "config.yaml"
    overrides = [] if args.dataset is None else ["DATASETS.TEST", str((args.dataset,))]
    imports = [word for name in args.imports for word in ("--import", name)]
    unsafe = ["--allow-unsafe-yaml"] if args.allow_unsafe_yaml else []
    options = ["--eval-only", "--config-file", str(config_file), *imports, *unsafe]
    job = argument_parser().parse_args([*options, *overrides])
    cfg = load_config(job)
    if not builds_focal_retinanet(cfg):
        raise ValueError(
            f"{config_file}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, but FocalRetinaNet labels the "
            "examples. The checkpoint of a Detectron2 RetinaNet fits it: change the name there"
        )
    return cfg


def run(args):
    if args.samples < 1:
        raise ValueError(f"--samples is {args.samples}: keep at least one positive and one negative")
    cfg = read_config(args)
    dataset_name = cfg.DATASETS.TEST[0]
    weights = args.weights or args.output_dir / "model_final.pth"

    seeds = np.random.SeedSequence(args.seed).spawn(len(HARDEST))
    examples = {kind: Reservoir(args.samples, seed) for kind, seed in zip(HARDEST, seeds)}
    collect(load_model(cfg, weights), build_loader(cfg, dataset_name), **examples)
    for kind, sample in examples.items():
        if not sample.seen:
            raise ValueError(f"data set '{dataset_name}' has no {kind}: its boxes match no anchor as they should")

    curves = {kind: {g: cumulative_loss(sample.values, g) for g in GAMMAS} for kind, sample in examples.items()}
    shares = {kind: {g: share_of_hardest(curves[kind][g], HARDEST[kind]) for g in GAMMAS} for kind in HARDEST}
    folder = args.output_dir / "loss_distribution"
    folder.mkdir(exist_ok=True)
    report = {"dataset": dataset_name, "weights": str(weights), "seed": args.seed}
    for kind, sample in examples.items():
        counts = {"seen": sample.seen, "sampled": len(sample.values)}
        report[kind] = {**counts, "hardest": HARDEST[kind], "share_of_loss": shares[kind]}
    (folder / "loss_distribution.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(curves, folder / "loss_distribution")

    counts = [f"{len(sample.values):,} of {sample.seen:,} {kind}" for kind, sample in examples.items()]
    print(f"{dataset_name}: {', '.join(counts)}")
    print_table(shares)
    print(f"Figure: {(folder / 'loss_distribution.png').resolve()}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a training")
    parser.add_argument("--weights", type=Path, help="checkpoint (default: model_final.pth in OUTPUT_DIR)")
    parser.add_argument("--dataset", help="registered data set (default: the first of DATASETS.TEST)")
    parser.add_argument(
        "--samples", type=int, default=10**6, help="keep at most so many positives and negatives (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: %(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module=r"torch\.")  # Detectron2 0.6 calls what torch has deprecated since
    try:
        run(args)
    except (UserError, OSError, ValueError) as error:
        sys.exit(format_error(error))
