"""Writes a large image, as a program of its own that imports neither torch nor this package: FILE SIDE."""

import sys

import cv2
import numpy as np

_PATTERN = 1000  # pixels


def write_image(path, side):
    """Write a square image of repeated soft spots, in the format of the path's ending."""
    rng = np.random.default_rng(0)
    pattern = cv2.resize(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8), (_PATTERN, _PATTERN))
    times = -(-side // _PATTERN)
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.endswith(".png") else []
    cv2.imwrite(path, np.tile(pattern, (times, times, 1))[:side, :side], fast)


if __name__ == "__main__":
    write_image(sys.argv[1], int(sys.argv[2]))
