"""Looking into files: processes, headers alone, each file once."""

import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from retina_plugin.data.checks.image_files import ImageFiles, look_into


def test_processes_see_what_one_process_sees_in_the_order_asked(random_set):
    images = random_set.coco["images"]
    random_set.path(images[3]).write_bytes(b"")
    random_set.path(images[5]).unlink()
    paths = [str(random_set.path(image)) for image in images]
    paths = [paths[i] for i in random_set.rng.integers(0, len(paths), 40)]
    alone, together = ImageFiles(workers=0).look(paths), ImageFiles(workers=2).look(paths)
    assert alone == together == [look_into(path) for path in paths]
    assert ImageFiles(workers=2).look([]) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_orientation_are_those_of_detectron2s_image(orientation, random_set):
    image = random_set.some("images")
    exif = Image.Exif()
    exif[274] = orientation
    path = str(random_set.draw(image, exif=exif))
    height, width = read_image(path, "BGR").shape[:2]
    for decode in (True, False):
        assert look_into(path, decode=decode).turned_size == (width, height)


def test_headers_tell_sizes_and_colors_and_not_damage(random_set):
    image = random_set.some("images")
    path = random_set.draw(image, mode="L")
    path.write_bytes(path.read_bytes()[:-200])
    assert look_into(str(path)).problem == "truncated"
    header = look_into(str(path), decode=False)
    assert header.problem is None and header.mode == "L" and header.size == (image["width"], image["height"])
