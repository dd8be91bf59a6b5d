"""Installs retina_plugin beside the Detectron2 that is already there.

Neither torch nor Detectron2 is among the requirements: pip would replace a build of one's own by another, or fail to
see one that conda installed. Without Detectron2, ``import retina_plugin`` says how to get it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="retina_plugin",
    version=re.search(r'__version__ = "(.+)"', (HERE / "retina_plugin" / "__init__.py").read_text())[1],
    description="RetinaNet and focal loss as a Detectron2 plugin",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["retina_plugin", "retina_plugin.*"]),
    python_requires=">=3.10",
    extras_require={"quickstart": ["scikit-learn"]},
)
