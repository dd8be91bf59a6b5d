"""Converts files of weights. Weights and configuration are checked against each other before either is written."""

import functools
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from retina_plugin.checkpoint import CheckpointError, read_checkpoint
from retina_plugin.checkpoint.converters import TARGETS, convert, detect_source
from retina_plugin.checkpoint.converters.conversion import Conversion, Weights
from retina_plugin.config import get_cfg, read_config
from retina_plugin.config.yaml_file import read_yaml
from retina_plugin.core.files import atomic_write, require_new_file
from retina_plugin.core.text import list_some
from retina_plugin.model_zoo import get_config_file

_AUTHOR = "retina_plugin"


def convert_file(
    src: Path,
    dst: Path,
    source: str | None = None,
    *,
    norm_eps: float | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> str:
    """Convert weights of another framework, and write ``DST.pth`` and ``DST.yaml``.

    Args:
        src: file of weights.
        dst: path without suffix, or with that of the weights.
        source: a key of ``SOURCES``; None to detect it.
        norm_eps: see :mod:`retina_plugin.checkpoint.converters`.
        allow_pickle: see :func:`read_checkpoint`.
        overwrite: whether to replace files of these names.

    Returns:
        Lines for the user: what was converted, and what differs from the source.

    Raises:
        CheckpointError: the weights cannot be converted. Nothing is written.
        FileError: one of the files exists. Nothing is written.
    """
    weights_path, config_path = _destination(dst, overwrite, src)
    checkpoint = read_checkpoint(src, allow_pickle=allow_pickle)
    try:
        source = source or detect_source(checkpoint["model"])
        conversion = convert(checkpoint, source, norm_eps)
        base = read_yaml(get_config_file("Base-RetinaNet"))
        _write(src, source, conversion, base, weights_path, config_path)
    except CheckpointError as error:
        raise CheckpointError(f"{src}: {error}") from error.__cause__
    numbers = f"{len(checkpoint['model'])} weights of {source} became {len(conversion.model)} of FocalRetinaNet."
    return "\n".join([str(config_path.resolve()), numbers, *(f"- {note}" for note in conversion.notes)])


def export_file(
    src: Path,
    dst: Path,
    target: str,
    *,
    config_file: Path | None = None,
    imports: Iterable[str] = (),
    allow_unsafe_yaml: bool = False,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> str:
    """Convert weights of this plugin for another framework, and write ``DST.pth`` and, if it needs one, ``DST.yaml``.

    Args:
        src, dst, allow_pickle, overwrite: see :func:`convert_file`.
        target: a key of ``TARGETS``.
        config_file: the configuration of ``src``; None for its name with ``.yaml``, or ``config.yaml`` beside it.
        imports: modules of projects, as of ``--import``.
        allow_unsafe_yaml: run code that the configuration names.

    Returns:
        Lines for the user.

    Raises:
        CheckpointError: the other framework cannot compute the same. Nothing is written.
        FileError: one of the files exists. Nothing is written.
    """
    config_file = config_file or _config_beside(src)
    weights_path, config_path = _destination(dst, overwrite, src, config_file)
    checkpoint = read_checkpoint(src, allow_pickle=allow_pickle)
    lines = []
    try:
        conversion = TARGETS[target].export(
            checkpoint, read_config(str(config_file), (), imports, allow_unsafe=allow_unsafe_yaml)
        )
        if conversion.config:
            _write(src, "retina_plugin", conversion, {}, weights_path, config_path)
            lines.append(str(config_path.resolve()))
        else:  # torchvision's files are nothing but weights
            _save(conversion.model, weights_path)
    except CheckpointError as error:
        raise CheckpointError(f"{src}: {error}") from error.__cause__
    lines.append(f"{len(checkpoint['model'])} weights became {len(conversion.model)} of {target}.")
    return "\n".join([*lines, *(f"- {note}" for note in conversion.notes)])


def _destination(dst: Path, overwrite: bool, *inputs: Path) -> tuple[Path, Path]:
    stem = str(dst).removesuffix(".pth")
    paths = Path(f"{stem}.pth"), Path(f"{stem}.yaml")
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        require_new_file(path, overwrite=overwrite, inputs=inputs)
    return paths


def _config_beside(src: Path) -> Path:
    candidates = [src.with_suffix(".yaml"), src.with_name("config.yaml")]
    for path in candidates:
        if path.is_file():
            return path
    raise CheckpointError(
        f"--to needs the configuration of the weights, and there is neither {candidates[0]} nor {candidates[1]}: name "
        "it with --config-file"
    )


def _write(src: Path, source: str, conversion: Conversion, base: dict, weights_path: Path, config_path: Path) -> None:
    """Write weights and the configuration: nested keys of ``base``, and over them those of the conversion."""
    config = CfgNode(base)
    for key, value in {**conversion.config, "MODEL.WEIGHTS": str(weights_path.resolve())}.items():
        *sections, name = key.split(".")
        functools.reduce(lambda node, section: node.setdefault(section, CfgNode()), sections, config)[name] = value
    _check_fits(config, conversion.model)
    weights: dict[str, Any] = {"model": conversion.model, "__author__": _AUTHOR}
    if conversion.class_names is not None:
        weights["class_names"] = list(conversion.class_names)
    comments = [f"Converted from {src.name} ({source}) by python -m retina_plugin convert.", *conversion.notes]
    lines = [f"# {line}\n" for comment in comments for line in textwrap.wrap(comment, 115)]
    text = config.dump(default_flow_style=None, sort_keys=False, width=120)

    def write_both(file: IO[bytes]) -> None:
        file.write("".join(lines + [text]).encode())
        file.flush()  # before the weights: a full disk leaves neither file
        _save(weights, weights_path)

    atomic_write(config_path, write_both)


def _save(weights: Mapping[str, Any], path: Path) -> None:
    atomic_write(path, lambda file: torch.save(weights, file))


def _check_fits(config: CfgNode, model: Weights) -> None:
    """Check that weights are exactly those of the detector that a configuration builds."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(config)
    with torch.device("meta"):  # no memory, no time
        built = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
    shapes = {name: tuple(value.shape) for name, value in built.items() if name != "loss_normalizer.ema"}
    problems = [f"{name} is missing" for name in sorted(shapes.keys() - model.keys())]
    problems += [f"{name} belongs to no part of the detector" for name in sorted(model.keys() - shapes.keys())]
    problems += [
        f"{name} has the shape {tuple(value.shape)} instead of {shapes[name]}"
        for name, value in sorted(model.items())
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    if problems:
        listed = list_some(problems, 5, "; ")
        raise CheckpointError(f"the weights do not fit {cfg.MODEL.META_ARCHITECTURE} with their shapes: {listed}")
