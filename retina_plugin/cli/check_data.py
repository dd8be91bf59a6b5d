"""Find what training would stop at, learn wrongly or drop in a data set, and correct it.

Exit status: 0 if nothing breaks training (warnings and notes do not), 1 if there are errors, 2 if the data set cannot
be read or the arguments are wrong. With --fix, it is still that of the data set as it is.
"""

import json
import os
import sys
from pathlib import Path

from detectron2.config import get_cfg

from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.config.checks import builds_focal_retinanet, check_datasets, check_model_config
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import atomic_write
from retina_plugin.data import checks
from retina_plugin.data.checks import report
from retina_plugin.model_zoo import get_config_file

CLEAN, ERRORS, UNREADABLE = 0, 1, 2


def add_arguments(parser):
    parser.add_argument("name", nargs="?", metavar="NAME", help="data set registered with Detectron2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="COCO file, in place of NAME")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")
    parser.add_argument(
        "--config-file", default="", help="of the training: its anchors, sizes and classes (default: Base-RetinaNet)"
    )
    parser.add_argument("--workers", type=int, help="processes that read images, 0 for this one (default: one a CPU)")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--headers-only", action="store_true", help="read headers of images, and decode none")
    files.add_argument("--no-images", action="store_true", help="leave image files alone")
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="places to print of each kind (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write every finding, to .csv or .json")
    parser.add_argument("--fix", type=Path, metavar="FILE", help="write a corrected copy of the COCO file")
    parser.add_argument("--opts", nargs="...", default=[], metavar="KEY VALUE", help="overrides; the last argument")


def run(args):
    try:
        return _check(args)
    except (OSError, ValueError) as error:
        # Status 1 is for errors in the data.
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return UNREADABLE


def _check(args):
    _check_arguments(args)
    cfg = _config(args)
    num_classes = _num_classes(args, cfg)
    workers = _num_cpus() if args.workers is None else args.workers
    files = None if args.no_images else checks.ImageFiles(decode=not args.headers_only, workers=workers)
    found = checks.Findings()
    try:
        if args.name:
            check_datasets([args.name])
            data = checks.from_catalog(args.name, found)
        else:
            data = checks.from_json(str(args.json), str(args.images or ""), found)
        if args.fix:
            _check_fix(args.fix, data)
        numbers = ", ".join(f"{len(data.coco[s])} {s}" for s in ("images", "annotations", "categories"))
        print(f"{data.name}: {numbers}", flush=True)
        checks.check_data_set(data, cfg, found, files=files, num_classes=num_classes)
    except checks.CannotCheck as stop:
        found.add(stop.kind, stop.detail)
        found.complete = False
    _print(found, args.examples)
    if args.report:
        report.write_report(found, args.report)
        print(f"All findings: {args.report.resolve()}")
    if not found.complete:
        print("Nothing else could be checked.")
        return UNREADABLE
    if args.fix:
        _fix(args.fix, data, cfg, found, files, num_classes, args.examples)
    return ERRORS if found.count(checks.ERROR) else CLEAN


def _check_arguments(args):
    if bool(args.name) == bool(args.json):
        raise ValueError("name a registered data set, or a COCO file with --json FILE --images DIR")
    if args.images and not args.json:
        raise ValueError("--images is the folder of --json's images; a registered data set has its own")
    if args.json and not args.images and not args.no_images:
        raise ValueError("--json needs the folder of its images, --images DIR, or --no-images")
    if args.examples < 1:
        raise ValueError(f"--examples is {args.examples}: at least one place of each kind is printed")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers is {args.workers}: the number of processes that read images, 0 for this one")
    if args.report:
        report.check_report_name(args.report)
    for path in filter(None, [args.fix, args.report]):
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} to")


def _config(args):
    cfg = get_cfg()
    add_retina_config(cfg)
    merge_config(cfg, args.config_file or get_config_file("Base-RetinaNet.yaml"), args.opts)
    check_model_config(cfg)
    if not builds_focal_retinanet(cfg) and cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        name = cfg.MODEL.META_ARCHITECTURE
        raise ConfigError([f"MODEL.META_ARCHITECTURE is '{name}', which is no RetinaNet: its anchors are others"])
    return cfg


def _num_cpus():
    # Of this process, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_classes(args, cfg):
    # The default of 80 is nobody's choice.
    chosen = args.config_file or "MODEL.RETINANET.NUM_CLASSES" in args.opts
    return cfg.MODEL.RETINANET.NUM_CLASSES if chosen else None


def _check_fix(path, data):
    if data.json_file is None:
        raise ValueError(f"--fix corrects COCO files, and {data.name} is none: correct where its dicts are made")
    if path.exists() and os.path.samefile(path, data.json_file):
        raise ValueError(f"--fix {path} is the data set's own file, which stays as it is: name another")


def _print(found, examples):
    for text in filter(None, [report.as_text(found, examples), report.summary(found)]):
        print(f"\n{text}")


def _fix(path, data, cfg, found, files, num_classes, examples):
    changes, left = checks.repair_until_clean(data, cfg, found, files=files, num_classes=num_classes)
    atomic_write(str(path), lambda file: file.write(json.dumps(data.coco).encode()))
    print(f"\n{report.changes_as_text(changes)}\n\nCorrected copy: {path.resolve()}")
    if len(left):
        print(f"Left in it:\n\n{report.as_text(left, examples)}\n\n{report.summary(left)}")
