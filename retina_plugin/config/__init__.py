"""The plugin's configuration keys: defaults, reading files and overrides, checks."""

from retina_plugin.config.defaults import add_retina_config, require_retina_config
from retina_plugin.config.io import add_config_arguments, flatten, get_cfg, merge_config, merge_values, read_config

__all__ = [
    "add_config_arguments",
    "add_retina_config",
    "flatten",
    "get_cfg",
    "merge_config",
    "merge_values",
    "read_config",
    "require_retina_config",
]
