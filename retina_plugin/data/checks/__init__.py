"""Finds what Detectron2 would stop at late, learn wrongly, or silently drop, before training.

``sources`` brings every source into the form of a COCO file. ``run`` calls the checks in order; each adds findings to
a ``Context`` and leaves in it what the next check can use. The repair of a kind of finding is declared beside the kind.
``report`` prints and writes the findings.
"""

from retina_plugin.data.checks.context import Context
from retina_plugin.data.checks.findings import ERROR, KINDS, CannotCheck, Findings
from retina_plugin.data.checks.image_files import ImageFiles
from retina_plugin.data.checks.run import MAX_DROPPED, Repaired, check_data_set, repair_until_clean
from retina_plugin.data.checks.sources import from_catalog, from_json

__all__ = ["ERROR", "KINDS", "MAX_DROPPED", "CannotCheck", "Context", "Findings", "ImageFiles", "Repaired"]
__all__ += ["check_data_set", "from_catalog", "from_json", "repair_until_clean"]
