"""The ablation's results as results.json, a table (results.md) and a plot (results.png, results.svg)."""

import json
from statistics import mean

import matplotlib
import torch
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.structures import Boxes, BoxMode
from matplotlib.figure import Figure

from loss_ablation.rows import ROWS
from retina_plugin import get_cfg, merge_config
from retina_plugin.modeling import AnchorMatcher

STRIDES = (8, 16, 32, 64, 128)
_SETTINGS = {
    "CLS_LOSS": "loss",
    "FOCAL_LOSS_ALPHA": "alpha",
    "FOCAL_LOSS_GAMMA": "gamma",
    "FOCAL_STAR_GAMMA": "gamma",
    "FOCAL_STAR_BETA": "beta",
    "PRIOR_PROB": "prior",
}


def write_report(output, config_file, opts, results):
    """Write results.json, results.md, results.png and results.svg.

    Args:
        output: folder.
        config_file, opts: what all rows share.
        results: ``{row name: {seed: result}}`` of ``ablation.run_once``.

    Returns:
        list of the paths written.
    """
    rows = [_row_record(row, results[row.name]) for row in ROWS]
    done = [result for by_seed in results.values() for result in by_seed.values()]
    record = {
        "overrides": opts,
        "hours": round(sum(result["seconds"] for result in done) / 3600, 2),
        "devices": sorted({result["device"] for result in done}),
        "anchors": count_anchors(config_file, opts),
        "rows": rows,
    }
    paths = [output / f"results.{suffix}" for suffix in ("json", "md", "png", "svg")]
    paths[0].write_text(json.dumps(record, indent=1))
    paths[1].write_text(_table(record))
    figure = _plot(rows)
    with matplotlib.rc_context({"svg.hashsalt": "retina_plugin"}):
        figure.savefig(paths[2], dpi=160)
        figure.savefig(paths[3], metadata={"Date": None})
    return paths


def _row_record(row, by_seed):
    settings = {_SETTINGS[key]: value for key, value in row.options.items() if key in _SETTINGS}
    seeds = sorted(by_seed)
    aps = {kind: [by_seed[seed][kind] for seed in seeds] for kind in ("ap", "ap50")}
    return {"name": row.name, **settings, "seeds": seeds, **aps, "paper": row.paper, "source": row.source}


def count_anchors(config_file, opts):
    """How many anchors of the training set are positive, ignored and negative."""
    cfg = get_cfg()
    merge_config(cfg, str(config_file), opts)
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=s) for s in STRIDES])
    matcher = AnchorMatcher(cfg)
    counts = torch.zeros(3, dtype=torch.int64)
    for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]):
        cells = [[-(-record[side] // s) for side in ("height", "width")] for s in STRIDES]
        anchors = Boxes.cat(generator([torch.zeros(1, 1, *cell) for cell in cells]))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
        _, labels = matcher.match(anchors, Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
        counts += torch.stack([(labels == kind).sum() for kind in (1, -1, 0)])
    return dict(zip(("positive", "ignored", "negative"), counts.tolist()))


def _table(record):
    seeds, devices = len(record["rows"][0]["seeds"]), ", ".join(record["devices"])
    imbalance = record["anchors"]["negative"] / record["anchors"]["positive"]
    lines = [
        f"{seeds} seeds, {record['hours']} hours of training on {devices}; "
        f"1 positive anchor to {imbalance:.0f} negative ones.",
        "",
        "| loss | AP: mean (lowest to highest) | AP50 | AP of the paper, on COCO | where |",
        "|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        paper = "" if row["paper"] is None else row["paper"]
        lines.append(f"| {row['name']} | {_spread(row['ap'])} | {_spread(row['ap50'])} | {paper} | {row['source']} |")
    return "\n".join(lines) + "\n"


def _spread(values):
    finite = [value for value in values if value is not None]
    diverged = f"diverged {len(values) - len(finite)} of {len(values)} times" if len(finite) < len(values) else ""
    spread = f"{mean(finite):.1f} ({min(finite):.1f} to {max(finite):.1f})" if finite else ""
    return ", ".join(filter(None, (spread, diverged)))


def _plot(rows):
    """Ours on the left, a dot a seed and a bar at the mean; the paper's on the right."""
    figure = Figure(figsize=(8, 0.34 * len(rows) + 1.1), layout="constrained")
    ours, paper = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, row in enumerate(rows):
        values = [value for value in row["ap"] if value is not None]
        if values:
            ours.plot(values, [y] * len(values), "o", color="#0072b2", alpha=0.6, markersize=5, markeredgewidth=0)
            ours.plot([mean(values)], [y], "|", color="#0072b2", markersize=14, markeredgewidth=2.5)
        else:
            ours.text(0, y, "diverged", va="center", color="#d55e00")
        if row["paper"] is not None:
            paper.plot([row["paper"]], [y], "D", color="#444444", markersize=5)
        else:
            paper.text(0, y, row["source"].partition(": ")[2], va="center", color="#888888", fontsize=8)
    ours.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ours.invert_yaxis()
    ours.set_title("here: AP on sparse digits", loc="left", fontsize=10)
    paper.set_title("the paper: AP on COCO", loc="left", fontsize=10)
    for axes in (ours, paper):
        axes.set_xlim(left=-1)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
    return figure
