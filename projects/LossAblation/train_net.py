"""The plugin's train_net.py, with the sparse digits registered."""

import runpy
from pathlib import Path

import sparse_digits  # noqa: F401

runpy.run_path(str(Path(__file__).parents[2] / "train_net.py"), run_name="__main__")
