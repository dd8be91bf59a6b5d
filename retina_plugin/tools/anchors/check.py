"""Reports how the anchors of a configuration cover the boxes of a data set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from tabulate import tabulate

from retina_plugin.core.files import atomic_write, atomic_write_text
from retina_plugin.core.text import one_line
from retina_plugin.modeling.anchor_coverage import MAX_MISSED
from retina_plugin.tools.anchors.coverage import COCO_SIZES, MAX_IMAGES, Coverage, Row, measure_coverage
from retina_plugin.tools.anchors.output import new_files
from retina_plugin.tools.anchors.training_set import class_names_of, read_training_images

COVERED, POOR = 0, 1

_BINS = np.linspace(0, 1, 21)
_BAR = 50  # letters
_CLASSES_SHOWN = 10
_MISSED_WRITTEN = 1000
_COLORS = ("#D55E00", "#0072B2", "#009E73")  # of Okabe and Ito


def check_anchors(
    cfg: CfgNode,
    *,
    output_dir: Path | None = None,
    overwrite: bool = False,
    max_images: int = MAX_IMAGES,
    max_missed: float = MAX_MISSED,
    seed: int = 0,
) -> tuple[Coverage, int]:
    """Measure, print and write the coverage of the boxes of ``DATASETS.TRAIN``.

    Args:
        cfg: of :func:`~retina_plugin.tools.anchors.training_set.read_training_config`.
        output_dir: gets ``coverage.json`` and ``coverage.png``.
        overwrite: whether they may replace files.
        max_images, seed: see :func:`~retina_plugin.tools.anchors.coverage.measure_coverage`.
        max_missed: largest share of boxes without an anchor that is positive without low-quality matches.

    Returns:
        The coverage, and an exit status: ``COVERED``, or ``POOR`` if the share is larger.

    Raises:
        ConfigError: the data set cannot be used, or has no boxes.
        FileError: a file to write exists.
    """
    if not 0 <= max_missed <= 1:
        raise ValueError(f"--max-missed is {max_missed}: a share of the boxes, from 0 to 1")
    files = new_files(output_dir, ["coverage.json", "coverage.png"], overwrite)
    images = read_training_images(cfg)
    coverage = measure_coverage(cfg, images, class_names_of(cfg), max_images=max_images, seed=seed)
    rows = list(coverage.rows())
    status = POOR if rows[0].missed > max_missed else COVERED
    for line in (_title(cfg, coverage, len(images)), _table(coverage, rows), _histogram(coverage)):
        print(f"{line}\n")
    print(_verdict(coverage, rows[0], max_missed))
    if files:
        report = _as_json(cfg, coverage, rows, max_missed)
        atomic_write_text(files[0], json.dumps(report, indent=1))
        figure = _draw(coverage)
        atomic_write(files[1], lambda file: figure.savefig(file, format="png", dpi=120))
        print("\n".join(str(path.resolve()) for path in files))
    return coverage, status


def _title(cfg: CfgNode, coverage: Coverage, num_images: int) -> str:
    shown = len(coverage.file_names)
    of = f" of {num_images}" if shown < num_images else ""
    names = ", ".join(map(one_line, cfg.DATASETS.TRAIN))
    return f"{names}: {len(coverage.iou)} boxes of {shown}{of} images, at training size"


def _table(coverage: Coverage, rows: Sequence[Row]) -> str:
    classes = [row for row in rows if row.group == "class"]
    hidden = sorted(classes, key=lambda row: row.missed)[: max(0, len(classes) - _CLASSES_SHOWN)]
    headers = ["", "", "boxes", "mean best IoU", f"best IoU < {coverage.threshold:g}"]
    headers += ["no positive", "positives a box"] if coverage.positives is not None else []
    lines, group = [], ""
    for row in rows:
        if row in hidden:
            continue
        cells = [row.group if row.group != group else "", one_line(row.name), row.boxes, f"{row.mean_iou:.3f}"]
        cells += [f"{row.missed:.1%}"]
        if row.unmatched is not None and row.positives is not None:
            cells += [f"{row.unmatched:.1%}", f"{row.positives:.1f}"]
        lines.append(cells)
        group = row.group
    text = tabulate(lines, headers, tablefmt="simple", disable_numparse=True, colalign=_alignment(headers))
    if coverage.positives is not None:
        means = coverage.positives.mean(axis=0)
        levels = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(coverage.levels, means))
        text += f"\n\npositive anchors a box, by level: {levels}"
    return text + (f"\n{len(hidden)} classes with better coverage are not shown." if hidden else "")


def _alignment(headers: Sequence[str]) -> tuple[str, ...]:
    return ("left", "left", *["right"] * (len(headers) - 2))


def _histogram(coverage: Coverage) -> str:
    counts, edges = np.histogram(coverage.iou, _BINS)
    largest = max(counts.max(), 1)
    bars = (
        f"{low:.2f} - {high:.2f}  {'#' * -(-_BAR * count // largest):{_BAR}} {count}"
        for low, high, count in zip(edges, edges[1:], counts.tolist())
    )
    return "\n".join(["best IoU of a box with an anchor", *bars])


def _verdict(coverage: Coverage, row: Row, max_missed: float) -> str:
    limit = f"the limit is {max_missed:.0%}"
    share = f"{row.missed:.1%} of the boxes have no anchor with an IoU of {coverage.threshold:g} or more ({limit})"
    if row.missed <= max_missed:
        return f"{share}."
    return (
        f"{share}: they are learned only from low-quality matches, or never. `anchors fit` proposes sizes and ratios; "
        "larger images (INPUT.MIN_SIZE_TRAIN) help small boxes."
    )


def _as_json(cfg: CfgNode, coverage: Coverage, rows: Sequence[Row], max_missed: float) -> dict[str, Any]:
    counts, edges = np.histogram(coverage.iou, _BINS)
    missed = np.flatnonzero(coverage.missed)
    worst = missed[np.argsort(coverage.iou[missed], kind="stable")][:_MISSED_WRITTEN]
    return {
        "datasets": list(cfg.DATASETS.TRAIN),
        "images": len(coverage.file_names),
        "positive_iou": coverage.threshold,
        "max_missed": max_missed,
        "rows": [vars(row) for row in rows],
        "positives_by_level": None
        if coverage.positives is None
        else dict(zip(coverage.levels, coverage.positives.mean(axis=0).tolist())),
        "best_iou_histogram": {"edges": edges.round(6).tolist(), "counts": counts.tolist()},
        "num_missed": len(missed),
        "worst_missed": [
            {
                "file_name": coverage.file_names[coverage.image[i]],
                "box_at_training_size": coverage.boxes[i].astype(float).round(2).tolist(),
                "class": coverage.class_names[coverage.label[i]],
                "best_iou": round(float(coverage.iou[i]), 4),
            }
            for i in worst
        ],
    }


def _draw(coverage: Coverage) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    size = np.searchsorted(list(COCO_SIZES.values()), coverage.area, side="right")
    groups = [coverage.iou[size == number] for number in range(len(COCO_SIZES))]
    axes.hist(groups, _BINS.tolist(), stacked=True, color=_COLORS, label=list(COCO_SIZES))
    axes.axvline(coverage.threshold, color="#222222", linestyle="--", linewidth=1)
    share = f"{coverage.missed.mean():.1%} of the boxes are left of the line"
    axes.set(xlabel="best IoU of a box with an anchor", ylabel="boxes", xlim=(0, 1), title=share)
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
