"""The plugin's configuration keys: defaults, reading files and overrides, checks."""

from retina_plugin.config.defaults import add_retina_config, require_retina_config
from retina_plugin.config.io import flatten, get_cfg, merge_config, merge_values, read_config

__all__ = [
    "add_retina_config",
    "flatten",
    "get_cfg",
    "merge_config",
    "merge_values",
    "read_config",
    "require_retina_config",
]
