"""A COCO file and a folder get one name, whoever asks, and never that of another data set."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin.core.errors import ConfigError
from retina_plugin.data.coco_file import register_coco_file


def test_a_pair_has_one_name_and_another_pair_another(tmp_path):
    stem = f"of_{tmp_path.name}"
    DatasetCatalog.register(stem, list)  # someone else's
    names = [
        register_coco_file(tmp_path / folder / f"{stem}.json", tmp_path / images)
        for folder, images in (("a", "i"), ("b", "i"), ("a", "i"), ("a", "j"))
    ]
    assert names == [f"{stem}_2", f"{stem}_3", f"{stem}_2", f"{stem}_4"]
    assert MetadataCatalog.get(names[1]).json_file == str(tmp_path / "b" / f"{stem}.json")
    assert MetadataCatalog.get(names[1]).evaluator_type == "coco"
    for name in {stem, *names}:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize("pair", [("a.json", None), (None, "images"), (None, None)])
def test_half_a_pair_is_refused(pair):
    with pytest.raises(ConfigError, match="go together"):
        register_coco_file(*pair)
