"""Some hundred random and damaged files; ``python -m tests.checkpoint.fuzz`` reads them for hours."""

import sys
from pathlib import Path

import pytest

from .fuzz import fuzz


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
def test_random_and_damaged_files_end_in_an_error_or_in_weights(seed, tmp_path):
    outcomes = fuzz(seed, 0, 400, tmp_path / "findings")
    problems = [path.read_text() for path in Path(tmp_path).glob("findings/*.txt")]
    assert not outcomes["finding"] and not problems, problems[:3]
    assert outcomes["refused"] > 300 and outcomes["loaded"] > 3
