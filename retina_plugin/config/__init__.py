"""The plugin's keys, reading them, and checking them."""

from retina_plugin.config.defaults import add_retina_config, require_retina_config
from retina_plugin.config.io import flatten, merge_config

__all__ = ["add_retina_config", "flatten", "merge_config", "require_retina_config"]
