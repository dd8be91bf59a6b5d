"""Names in a data set do not control the terminal that commands print to."""

import re

import pytest

from retina_plugin.__main__ import main

from ..data.checks.sets import RandomSet

ATTACK = "\x1b[2J\x1b]0;owned\x07日本\u202e\r\nerror: forged\n"
SIZES = ["INPUT.MIN_SIZE_TRAIN", "(133,197)"]


@pytest.mark.parametrize("where", ["file_name", "category", "json", "field"])
def test_check_data_escapes_all_that_it_prints(tmp_path, seed, capsys, where):
    random_set = RandomSet(tmp_path, seed)
    coco = random_set.coco
    if where == "file_name":
        coco["images"][2]["file_name"] = ATTACK
    elif where == "category":
        coco["categories"][1]["name"] = coco["categories"][2]["name"] = ATTACK
        coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] != 2]
    elif where == "json":
        random_set.json_file = tmp_path / f"{ATTACK.replace('/', '')}.json"
    else:
        coco["annotations"][3]["bbox"] = ATTACK
        coco["images"][1]["id"] = coco["annotations"][9]["category_id"] = ATTACK
    random_set.write()
    main(["check-data", "--json", str(random_set.json_file), "--images", str(random_set.image_root), *SIZES])
    shown = "".join(capsys.readouterr())
    assert not set(shown) & set("\x1b\x07\r\u202e") and not re.search(r"^\s*error: forged", shown, re.MULTILINE)
    assert "日本" in shown and r"\x1b" in shown


def test_errors_of_commands_are_escaped(tmp_path, capsys):
    for words in (["replay", f"{tmp_path}/{ATTACK}"], ["visualize", f"{tmp_path}/{ATTACK}"], ["check-data", ATTACK]):
        assert main(words) == 2
        shown = "".join(capsys.readouterr())
        assert not set(shown) & set("\x1b\x07\r\u202e") and r"\x1b[2J" in shown
