"""Brings a key, a data set, a head, an assigner, a loss, a box coder, a box loss and a trainer."""

import retina_plugin  # noqa: F401  isort: skip

from foreign_project import dataset, parts  # noqa: F401
from foreign_project.config import add_config
from foreign_project.trainer import ForeignTrainer

__all__ = ["ForeignTrainer", "add_config"]
