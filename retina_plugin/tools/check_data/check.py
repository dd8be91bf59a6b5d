"""Checks a data set, prints and writes the findings, and writes a corrected copy."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from retina_plugin.config import read_config
from retina_plugin.config.checks import check_model_config
from retina_plugin.config.checks.model import builds_focal_retinanet
from retina_plugin.core.cores import num_cores
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.files import atomic_write_text, require_new_file
from retina_plugin.core.text import one_line
from retina_plugin.data import checks
from retina_plugin.data.checks import report
from retina_plugin.data.dataset_checks import check_datasets
from retina_plugin.model_zoo import get_config_file

CLEAN, ERRORS, UNREADABLE = 0, 1, 2


def check_data_set_of(
    name: str | None = None,
    *,
    json_file: Path | None = None,
    image_root: Path | None = None,
    config_file: str = "",
    opts: Sequence[str] = (),
    imports: Iterable[str] = (),
    allow_unsafe_yaml: bool = False,
    read_images: bool = True,
    decode: bool = True,
    workers: int | None = None,
    examples: int = 3,
    report_file: Path | None = None,
    fixed_file: Path | None = None,
    overwrite: bool = False,
) -> tuple[checks.Findings, int]:
    """Check a registered data set, or a COCO file and a folder of images, and print the findings.

    Args:
        name: registered name; None with ``json_file`` and ``image_root``.
        config_file, opts, imports, allow_unsafe_yaml: configuration of the training, by default Base-RetinaNet.
        read_images, decode: whether to read image files, and whether all pixels or only headers.
        workers: number of processes that read images, 0 for this one; None for one per core.
        examples: places to print of each kind.
        report_file: gets every finding, as .csv or .json.
        fixed_file: gets a corrected copy of the COCO file.
        overwrite: whether the two may replace files, which are never those of the data set.

    Returns:
        The findings, and an exit status: ``CLEAN``, ``ERRORS`` or, if the data set cannot be read, ``UNREADABLE``.

    Raises:
        FileError: a file to write exists.
        OSError: a file cannot be written.
        ValueError: the arguments contradict each other, or the configuration is not that of a RetinaNet.
    """
    if bool(name) == bool(json_file):
        raise ValueError("name a registered data set, or a COCO file with --json FILE --images DIR")
    if image_root and not json_file:
        raise ValueError("--images is the folder of --json's images; a registered data set has its own")
    if json_file and not image_root and read_images:
        raise ValueError("--json needs the folder of its images, --images DIR, or --no-images")
    if examples < 1:
        raise ValueError(f"--examples is {examples}: at least one place of each kind is printed")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers is {workers}: the number of processes that read images, 0 for this one")
    if report_file:
        report.check_report_name(report_file)
    outputs = [path for path in (fixed_file, report_file) if path]
    if len(outputs) == 2 and outputs[0].resolve() == outputs[1].resolve():
        raise ValueError(f"--fix and --report name the same file, {report_file}")
    for path in outputs:
        require_new_file(path, overwrite=overwrite, inputs=[json_file, config_file])
    config = config_file or get_config_file("Base-RetinaNet.yaml")
    cfg = read_config(config, opts, imports, allow_unsafe=allow_unsafe_yaml)
    check_model_config(cfg)
    if not builds_focal_retinanet(cfg) and cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        architecture = cfg.MODEL.META_ARCHITECTURE
        raise ConfigError([f"MODEL.META_ARCHITECTURE is '{architecture}', not a RetinaNet, and has other anchors"])
    # The default of 80 classes is not a choice of the user.
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES if config_file or "MODEL.RETINANET.NUM_CLASSES" in opts else None
    reader = checks.ImageFiles(decode=decode, workers=num_cores() if workers is None else workers)

    found, context = checks.Findings(), None
    try:
        if name:
            check_datasets([name])
            data = checks.from_catalog(name, found)
        else:
            data = checks.from_json(str(json_file), str(image_root or ""), found)
        if fixed_file and data.json_file is None:
            raise ValueError(f"--fix corrects COCO files, and {data.name} is none: correct where its dicts are made")
        for path in outputs:
            require_new_file(path, overwrite=overwrite, inputs=[data.json_file])
        numbers = ", ".join(f"{len(data.coco[s])} {s}" for s in ("images", "annotations", "categories"))
        print(f"{one_line(data.name)}: {numbers}", flush=True)
        context = checks.Context(data, cfg, found, reader if read_images else None, num_classes)
        checks.check_data_set(context)
    except checks.CannotCheck as stop:
        found.add(stop.kind, stop.detail)
    _print(found, examples)
    if report_file:
        report.write_report(found, report_file)
        print(f"All findings: {report_file.resolve()}")
    if context is None:
        print("Nothing else could be checked.")
        return found, UNREADABLE
    if fixed_file:
        changes, left = checks.repair_until_clean(context)
        atomic_write_text(fixed_file, json.dumps(context.data.coco))
        print(f"\n{report.changes_as_text(changes)}\n\nCorrected copy: {fixed_file.resolve()}")
        if len(left):
            print("Left in it:")
            _print(left, examples)
    return found, ERRORS if found.count(checks.ERROR) else CLEAN


def _print(found: checks.Findings, examples: int) -> None:
    for text in filter(None, [report.as_text(found, examples), report.summary(found)]):
        print(f"\n{text}")
