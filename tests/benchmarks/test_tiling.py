"""The measurement of tiled inference runs, and its memory is that of this process."""

import re
import resource

import pytest

from benchmarks.tiling import main


def test_the_command_prints_the_peak(capsys):
    options = ["TEST.TILE.SIZE", "500", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "30"]
    main(["--side", "900", "--file", "jpg", "--threads", "1", *options])
    last = capsys.readouterr().out.splitlines()[-1]
    tiles, detections, peak = map(
        int, re.fullmatch(r"(\d+) tiles, (\d+) detections, \d+ s, peak: (\d+) MB", last).groups()
    )
    assert (tiles, detections) == (4, 30)
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, rel=0.2)
