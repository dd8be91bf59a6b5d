"""Addresses without a connection: what cannot be fetched, and what lies in the cache."""

import os

import pytest
import torch
from detectron2.utils.file_io import PathManager

from retina_plugin.checkpoint import CheckpointError, read_checkpoint
from retina_plugin.checkpoint.weights_path import cached_file


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No connection, and an empty cache."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))


ADDRESSES = {
    "detectron2://ImageNetPretrained/MSRA/R-50.pkl": "detectron2/ImageNetPretrained/MSRA/R-50.pkl",
    "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/x/1/model_final.pkl": (
        "detectron2/COCO-Detection/x/1/model_final.pkl"
    ),
    "catalog://ImageNetPretrained/FAIR/X-101-32x8d": "detectron/ImageNetPretrained/20171220/X-101-32x8d.pkl",
    "https://example.org/weights.pth": "weights.pth",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_cannot_be_fetched_is_one_error_that_says_where_to_put_it(address, tmp_path, report):
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(address)
    text, place = str(error.value), str(tmp_path / "cache" / ADDRESSES[address])
    assert text.startswith(f"weights {address}: they cannot be fetched") and "\n" not in text
    assert f"put it at {place}, where Detectron2" in text and "set MODEL.WEIGHTS to the path of the file" in text
    assert "https://" in text and not os.path.exists(place)
    report("Broken files: what is said", address, text.replace(str(tmp_path), "~/.torch"))


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_file_put_there_is_used(address, tmp_path):
    place = tmp_path / "cache" / ADDRESSES[address]
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"w": torch.ones(2)}}, place)
    assert cached_file(address) == str(place) == PathManager.get_local_path(address)
    assert read_checkpoint(address)["model"]["w"].sum() == 2


def test_what_is_wrong_with_a_fetched_file_names_it(tmp_path):
    address = "https://example.org/folder/page.pth"
    place = tmp_path / "cache" / "folder" / "page.pth"
    place.parent.mkdir(parents=True)
    place.write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="this is a web page") as error:
        read_checkpoint(address)
    assert address in str(error.value) and str(place) in str(error.value)


@pytest.mark.parametrize("address", ["catalog://ImageNetPretrained/MSRA/R-51", "catalog://nothing"])
def test_a_name_that_the_catalog_does_not_have(address):
    with pytest.raises(CheckpointError, match="catalog has no model of this name"):
        read_checkpoint(address)


def test_an_address_that_nothing_handles_is_a_missing_file():
    with pytest.raises(CheckpointError, match="weights s3://bucket/model.pth: there is no such file"):
        read_checkpoint("s3://bucket/model.pth")
