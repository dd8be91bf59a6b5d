"""RetinaNet and focal loss (Lin et al. 2017) as a Detectron2 plugin.

Importing this package registers every component with Detectron2: the backbone builder
``build_p3p7_resnet_fpn_backbone``, the meta-architecture ``FocalRetinaNet`` and the quick-start data sets.
"""

# First: makes Detectron2 import on this machine, or says how to get it.
from retina_plugin import detectron2_compat  # noqa: F401  isort: skip

from retina_plugin import data, losses, modeling  # isort: skip
from retina_plugin.config import add_retina_config, merge_config
from retina_plugin.config.checks import check_config
from retina_plugin.core.errors import ConfigError

__version__ = "0.1.0"

__all__ = ["ConfigError", "add_retina_config", "check_config", "data", "losses", "merge_config", "modeling"]
