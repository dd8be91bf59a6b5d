"""Arguments of commands on a data set: a COCO file and a folder in place of a registered name."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_dataset_arguments(parser: argparse.ArgumentParser, in_place_of: str) -> None:
    """Declare ``--json FILE`` and ``--images DIR``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"COCO file, in place of {in_place_of}")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the words of ``[NAME] KEY VALUE ...`` into the name, None without one, and the overrides."""
    has_name = len(words) % 2  # overrides are pairs
    return words[0] if has_name else None, list(words[has_name:])
