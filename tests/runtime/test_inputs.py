"""What inputs name: files, folders, patterns, lists, videos, cameras, streams."""

import os

import numpy as np
import pytest
from PIL import Image

from retina_plugin import ConfigError
from retina_plugin.runtime.inputs import find_sources, is_single_image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.PNG", "c.mp4", "notes.md", ".hidden.jpg", "sub/d.jpg", "sub/deep/e.tif", "empty/f.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "up.jpg").mkdir()
    (tmp_path / "pipe.jpg").symlink_to("nowhere")
    (tmp_path / "sub" / "loop").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs, **options):
    return [os.path.relpath(source.name) for source in find_sources(inputs, **options)]


def test_folders(folder):
    flat = ["a.jpg", "b.PNG", "c.mp4", "pipe.jpg", "up.jpg"]
    assert names(folder) == names(".") == flat
    assert [source.kind for source in find_sources(folder)] == ["image", "image", "video", "image", "image"]
    deep = ["a.jpg", "b.PNG", "c.mp4", "empty", "pipe.jpg", "sub/d.jpg", "sub/deep/e.tif", "up.jpg"]
    assert names(".", recursive=True) == deep
    (problem,) = find_sources("empty")
    assert problem.problem == "the folder has no images or videos; --recursive looks into the folders in it"


def test_patterns(folder):
    assert names("*.jpg") == ["a.jpg", "pipe.jpg"]  # a folder is no match
    assert names("**/*.jpg") == ["a.jpg", "pipe.jpg", "sub/d.jpg"]
    (problem,) = find_sources("*.bmp")
    assert problem.problem == "no file matches this pattern"
    (folder / "[1].jpg").touch()
    assert names("[1].jpg") == ["[1].jpg"]  # a file of that name comes first


def test_lists(folder):
    (folder / "sub" / "list.txt").write_text("# mine\na.jpg\n\n  d.jpg  \ndeep\nmissing.jpg\nlist.txt\n")
    assert names("sub/list.txt") == ["a.jpg", "sub/d.jpg", "sub/deep/e.tif", "missing.jpg", "sub/list.txt"]
    (folder / "bad.txt").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(ConfigError, match="is not a list of paths"):
        find_sources("bad.txt")


def test_cameras_and_streams(folder):
    assert [source.kind for source in find_sources(["0", "rtsp://host/1"])] == ["stream", "stream"]
    (folder / "0").touch()
    assert find_sources("0")[0].kind == "image"
    with pytest.raises(ConfigError, match="https://x/a.jpg is an address that is not read"):
        find_sources(["https://x/a.jpg"])


def test_single_images(folder):
    one = ["a.jpg", "missing.jpg", "pipe.jpg", folder / "a.jpg", np.zeros((2, 2, 3), np.uint8), Image.new("L", (2, 2))]
    many = ["sub", "*.jpg", "list.txt", "c.mp4", "0", "rtsp://host/1", ["a.jpg"], ("a.jpg",)]
    assert all(map(is_single_image, one)) and not any(map(is_single_image, many))
