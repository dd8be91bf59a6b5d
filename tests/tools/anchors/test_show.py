"""Images are those of the mapper, and boxes have the colors of what they were assigned."""

import numpy as np
import pytest
from PIL import Image

from retina_plugin import ConfigError
from retina_plugin.core.drawing import GAP
from retina_plugin.tools.anchors import show
from retina_plugin.tools.anchors.training_set import read_training_config

from .sets import write_config, write_set

COVERED, TINY = (48, 48, 32, 32), (97, 97, 6, 6)  # an anchor of the second level is 32 x 32 and centered at (64, 64)


@pytest.fixture
def draw(tmp_path):
    def draw(boxes, *opts, **options):
        json_file, images = write_set(tmp_path, boxes)
        config = write_config(tmp_path, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]], *opts)
        cfg = read_training_config(json_file=json_file, image_root=images, config_file=str(config))
        return show.show_anchors(cfg, tmp_path / "shown", overwrite=True, **options)

    return draw


def color_at(path, tile, x, y):
    """The color of a point of a training image in a sheet."""
    left = GAP + (tile % 2) * (show._TILE + GAP)
    top = show._HEADER + (tile // 2) * (show._TILE + GAP)
    scale = show._TILE / 128
    with Image.open(path) as sheet:
        return np.array(sheet.convert("RGB").getpixel((left + round(x * scale), top + round(y * scale))))


def is_color(pixel, color):
    return np.abs(pixel - color).max() < 40


@pytest.mark.parametrize("low_quality", [True, False])
def test_boxes_are_green_or_red(draw, low_quality):
    (path,) = draw([[COVERED], [COVERED, TINY]], "MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES", low_quality)
    for tile in (0, 1):
        assert is_color(color_at(path, tile, 48.2, 64), show._GREEN)
    left_edge = [is_color(color_at(path, 1, 97.2, y), show._RED) for y in np.linspace(97.5, 102.5, 24)]
    assert any(left_edge) and all(left_edge) == (not low_quality)  # dashed, if there is a low-quality match


def test_anchors_have_the_color_of_their_level(draw):
    # 32 x 28: the anchor of the second level reaches 2 pixels above and below, with an IoU of 0.875.
    (path,) = draw([[(48, 50, 32, 28)]])
    assert is_color(color_at(path, 0, 64, 48.05), show._LEVEL_COLORS[1])


def test_there_are_four_images_on_a_sheet(draw):
    paths = draw([[COVERED]] * 7, num_images=6)
    assert [path.name for path in paths] == ["anchors_1.png", "anchors_2.png"]
    width = 2 * (show._TILE + GAP) + GAP
    for path, rows in zip(paths, (2, 1)):
        with Image.open(path) as sheet:
            assert sheet.size == (width, show._HEADER + rows * (show._TILE + GAP))


def test_a_file_that_is_no_image_is_an_error(draw, tmp_path):
    with pytest.raises(ValueError, match="--num-images is 0"):
        draw([[COVERED]], num_images=0)
    json_file, images = write_set(tmp_path, [[COVERED]])
    cfg = read_training_config(json_file=json_file, image_root=images, config_file=str(tmp_path / "config.yaml"))
    (images / "1.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="1.png cannot be read"):
        show.show_anchors(cfg, tmp_path / "shown")
