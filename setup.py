"""Installs retina_plugin beside the Detectron2 that is already there.

Neither torch nor Detectron2 is among the requirements: pip would replace a build of one's own by another, or fail to
see one that conda installed. Without Detectron2, ``import retina_plugin`` says how to get it.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent.resolve()


def link_configs():
    """Make configs/ a part of the package, for retina_plugin.model_zoo, as Detectron2 does with its own."""
    inside = HERE / "retina_plugin" / "configs"
    if inside.is_symlink():
        inside.unlink()
    elif inside.exists():
        shutil.rmtree(inside)
    try:
        inside.symlink_to(HERE / "configs", target_is_directory=True)
    except OSError:  # Windows, without the right to make links
        shutil.copytree(HERE / "configs", inside)
    return [str(path.relative_to(HERE / "configs").parent / "*.yaml") for path in (HERE / "configs").rglob("*.yaml")]


setup(
    name="retina_plugin",
    version=re.search(r'__version__ = "(.+)"', (HERE / "retina_plugin" / "__init__.py").read_text())[1],
    description="RetinaNet and focal loss as a Detectron2 plugin",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="retinanet, focal loss, object detection, detectron2, pytorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["retina_plugin", "retina_plugin.*"]),
    package_data={"retina_plugin": ["py.typed", *sorted({f"configs/{pattern}" for pattern in link_configs()})]},
    entry_points={"console_scripts": ["retina-plugin = retina_plugin.__main__:main"]},
    python_requires=">=3.10",
    extras_require={
        **{"quickstart": ["scikit-learn"], "safetensors": ["safetensors"], "timm": ["timm"]},
        # Of retina_plugin.Detections and docs/predicting.md:
        **{"fiftyone": ["fiftyone"], "ray": ["ray[data]"], "sahi": ["sahi"], "supervision": ["supervision"]},
    },
)
