"""Reading configuration files and overrides, with errors that say what to do."""

from detectron2.config import CfgNode

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.text import did_you_mean


def merge_config(cfg, config_file="", opts=()):
    """Merge a YAML file and command-line overrides into a ``CfgNode`` (in place).

    Args:
        cfg: the node that holds every known key, e.g. ``get_cfg()`` after :func:`add_retina_config`.
        config_file: path of a YAML file, which may have a ``_BASE_``; empty for none.
        opts: ``["KEY", "VALUE", ...]``, as Detectron2's argument parser returns them.

    Raises:
        ConfigError: file not found or not YAML, unknown keys (all of them, each with the key that may have
            been meant), a value of another type than the key's default, overrides that are not pairs.
    """
    known = dict(flatten(cfg))
    opts = list(opts)
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise ConfigError([f"overrides come in pairs, KEY VALUE, but there are {len(opts)} words: {words}"])
    if config_file:
        loaded = _load(config_file)
        # An older format has other keys; Detectron2 converts it while merging.
        if loaded.get("VERSION", cfg.VERSION) == cfg.VERSION:
            _check_keys(flatten(loaded), known, config_file)
        _merge(lambda: cfg.merge_from_file(config_file), config_file)
    _check_keys(zip(opts[::2], opts[1::2]), known, "command line")
    _merge(lambda: cfg.merge_from_list(opts), "command line")


def flatten(node, prefix=""):
    """Yield ("A.B.C", value) of every leaf of nested dicts."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _load(config_file):
    try:
        return CfgNode(CfgNode.load_yaml_with_base(config_file, allow_unsafe=True))
    except OSError as error:
        name = error.filename or config_file
        raise ConfigError([f"cannot read config file {name}: {error.strerror}"]) from None
    except Exception as error:  # YAML's and fvcore's many kinds
        reason = " ".join(str(error).split())
        raise ConfigError([f"{config_file} is not a YAML mapping of keys to values: {reason}"]) from None


def _check_keys(items, known, where):
    problems = []
    for key, value in items:
        if any(k.startswith(f"{key}.") for k in known):
            if value != {}:
                problems.append(f"{where}: {key} is a section with keys of its own, got {value}")
        elif key not in known:
            problems.append(_unknown_key(key, known, where))
    if problems:
        raise ConfigError(problems)


def _unknown_key(key, known, where):
    # The most frequent slips are the right name under the wrong node, and the beginning of a name.
    name = key.rpartition(".")[2]
    likely = [k for k in known if k.rpartition(".")[2] == name] or [k for k in known if k.startswith(key)]
    likely.sort(key=lambda k: not k.startswith("MODEL.RETINANET."))
    hint = f" Did you mean {likely[0]}?" if likely else did_you_mean(key, known)
    return f"unknown key {key} ({where}).{hint}"


def _merge(merge, where):
    try:
        merge()
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError([f"{where}: {' '.join(map(str, error.args))}"]) from None
