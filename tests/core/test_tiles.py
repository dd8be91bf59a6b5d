"""Tiles of an image: their number, places and cores."""

import numpy as np
import pytest

from retina_plugin.core.tiles import make_tiles


def draw(rng):
    size = int(rng.integers(2, 60))
    return int(rng.integers(1, 200)), int(rng.integers(1, 200)), size, int(rng.integers(0, size))


def test_the_fewest_evenly_spaced_tiles_cover_the_image(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        height, width, size, overlap = draw(rng)
        tiles = make_tiles(height, width, size, overlap)
        assert all(0 <= t.x0 < t.x1 <= width and 0 <= t.y0 < t.y1 <= height for t in tiles)
        columns, rows = (sorted({(t[i], t[i + 2]) for t in tiles}) for i in (0, 1))
        assert [t.rectangle for t in tiles] == [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]
        for pieces, length in ((columns, width), (rows, height)):
            fewest = 1
            while fewest * size - (fewest - 1) * overlap < length:
                fewest += 1
            assert len(pieces) == fewest
            assert (pieces[0][0], pieces[-1][1]) == (0, length)
            assert {end - start for start, end in pieces} == {min(size, length)}
            steps = np.diff([start for start, _ in pieces])
            assert len(steps) == 0 or (steps.max() - steps.min() <= 1 and size - steps.max() >= overlap)


def test_each_point_is_in_one_core_and_in_its_tile(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        height, width, size, overlap = draw(rng)
        tiles = make_tiles(height, width, size, overlap)
        x, y = rng.integers(-20, 450, (2, 300)) / 2  # halves, where borders are; also outside of the image
        cores = np.array([t.core for t in tiles])
        inside = (x >= cores[:, 0:1]) & (x < cores[:, 2:3]) & (y >= cores[:, 1:2]) & (y < cores[:, 3:4])
        assert (inside.sum(0) == 1).all()
        for i, tile in zip(inside.argmax(0), np.stack([x, y], 1)):
            px, py = tile
            if 0 <= px <= width and 0 <= py <= height:
                assert tiles[i].x0 <= px <= tiles[i].x1 and tiles[i].y0 <= py <= tiles[i].y1


def test_exclusive_is_where_no_other_tile_is(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        height, width, size, overlap = draw(rng)
        tiles = make_tiles(height, width, size, overlap)
        for x, y in rng.uniform(0, 1, (50, 2)) * [width, height]:
            holders = [t for t in tiles if t.x0 < x < t.x1 and t.y0 < y < t.y1]
            for t in holders:
                left, top, right, bottom = t.exclusive
                assert (left <= x <= right and top <= y <= bottom) == (len(holders) == 1)


@pytest.mark.parametrize(("size", "overlap"), [(10, 10), (10, 11), (10, -1), (0, 0)])
def test_an_overlap_that_cannot_be(size, overlap):
    with pytest.raises(ValueError, match=f"tiles of {size} pixels cannot overlap by {overlap}"):
        make_tiles(100, 100, size, overlap)
