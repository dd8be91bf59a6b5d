"""A conversion as files, weights and configuration, which are checked against each other before either is written."""

import os
from pathlib import Path

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from retina_plugin.checkpoint.converters.conversion import merged
from retina_plugin.config import add_retina_config
from retina_plugin.core.errors import CheckpointError
from retina_plugin.model_zoo import get_config_file

AUTHOR = "retina_plugin"
_STATE_OF_TRAINING = {"loss_normalizer.ema"}


def destination(stem):
    """Paths of weights and configuration.

    Args:
        stem: path without suffix, or with that of the weights.

    Raises:
        CheckpointError: one of them exists.
    """
    stem = str(stem).removesuffix(".pth")
    paths = Path(f"{stem}.pth"), Path(f"{stem}.yaml")
    for path in paths:
        if path.exists():
            raise CheckpointError(f"{path} exists; name another destination, or remove it")
    return paths


def full_config(conversion, weights_path):
    """The configuration of a conversion with all keys of Base-RetinaNet.yaml, as nested dicts."""
    base = yaml.safe_load(Path(get_config_file("Base-RetinaNet")).read_text())
    return with_weights(merged(base, conversion.config), weights_path)


def with_weights(config, weights_path):
    """A configuration (nested dicts) that starts from the weights of a file."""
    return merged(config, {"MODEL": {"WEIGHTS": str(weights_path.resolve())}})


def check_fits(config, model):
    """Check that weights are exactly those of the detector that a configuration builds.

    Args:
        config: nested dict of keys.
        model: name -> tensor.

    Raises:
        CheckpointError: with the names that are missing, left over or of another shape.
    """
    cfg = get_cfg()
    add_retina_config(cfg)
    cfg.merge_from_other_cfg(type(cfg)(config))
    with torch.device("meta"):  # no memory, no time
        built = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).state_dict()
    shapes = {name: tuple(value.shape) for name, value in built.items() if name not in _STATE_OF_TRAINING}
    problems = [f"{name} is missing" for name in sorted(shapes.keys() - model.keys())]
    problems += [f"{name} belongs to no part of the detector" for name in sorted(model.keys() - shapes.keys())]
    problems += [
        f"{name} has the shape {tuple(value.shape)} instead of {shapes[name]}"
        for name, value in sorted(model.items())
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the weights do not fit {cfg.MODEL.META_ARCHITECTURE} with their shapes: {'; '.join(problems[:5])}{more}"
        )


def as_yaml(config, comments):
    """A configuration (nested dicts) as YAML without code, below lines of comments."""
    text = yaml.safe_dump(config, default_flow_style=None, sort_keys=False, width=120)
    return "".join(f"# {line}\n" for line in comments) + text


def write(contents):
    """Write all files, or none: each is finished before the first gets its name.

    Args:
        contents: dict of path -> text, or anything that ``torch.save`` takes.
    """
    unfinished = {path: path.with_name(f"{path.name}.part") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                unfinished[path].write_text(content)
            else:
                torch.save(content, unfinished[path])
        for path, part in unfinished.items():
            os.replace(part, path)
    finally:
        for part in unfinished.values():
            part.unlink(missing_ok=True)
