"""Reading configuration files: what is refused, and what the message says."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from retina_plugin import ConfigError, add_retina_config, merge_config
from retina_plugin.config import flatten
from retina_plugin.config.io import RENAMED_KEYS, _warn_of_old_name

CONFIGS = Path(__file__).parents[2] / "configs"
README = CONFIGS.with_name("README.md")


def make_cfg():
    cfg = get_cfg()
    add_retina_config(cfg)
    return cfg


def problems(tmp_path, text, opts=()):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        merge_config(make_cfg(), str(path), opts)
    return error.value.problems


def test_changes_no_key_of_detectron2():
    before, after = dict(flatten(get_cfg())), dict(flatten(make_cfg()))
    assert {key: after[key] for key in before} == before


def test_the_readme_has_every_key_that_is_added():
    keys = dict(flatten(make_cfg())).keys() - dict(flatten(get_cfg())).keys()
    words = set(re.findall(r"[A-Z0-9_]+", README.read_text()))
    assert keys
    assert sorted(key for key in keys if not set(key.split(".")) <= words) == []


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_our_configs_are_read_without_code(path):
    text = path.read_text()
    assert "!!python" not in text
    merge_config(make_cfg(), str(path))


def test_anchor_sizes_are_three_octave_scales_of_each_level():
    cfg = make_cfg()
    merge_config(cfg, str(CONFIGS / "Base-RetinaNet.yaml"))
    expected = [[2 ** (level + 2) * 2 ** (i / 3) for i in range(3)] for level in range(3, 8)]
    for sizes, wanted in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, expected, strict=True):
        assert sizes == pytest.approx(wanted, rel=1e-12)


def test_file_and_overrides_are_merged_in_order(tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: {RETINANET: {NUM_CLASSES: 3, PRIOR_PROB: 0.02}}\nVERSION: 2\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: base.yaml\nMODEL: {RETINANET: {NUM_CLASSES: 4, CLS_LOSS: focal}}\n")
    cfg = make_cfg()
    merge_config(cfg, str(tmp_path / "mine.yaml"), ["MODEL.RETINANET.NUM_CLASSES", "5"])
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 5 and cfg.MODEL.RETINANET.PRIOR_PROB == 0.02


@pytest.mark.parametrize(
    "text, key, meant",
    [
        ("MODEL: {RETINANET: {NUM_CLASES: 3}}", "MODEL.RETINANET.NUM_CLASES", "MODEL.RETINANET.NUM_CLASSES"),
        ("MODEL: {NUM_CLASSES: 3}", "MODEL.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"),
        ("MODEL: {FPN: {TOP: p5}}", "MODEL.FPN.TOP", "MODEL.FPN.TOP_BLOCK_IN_FEATURE"),
        ("SOLVER: {MAX_ITERS: 3}", "SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        ("RETINANET: {}", "RETINANET", ""),
    ],
)
def test_unknown_keys_of_a_file(tmp_path, text, key, meant):
    (line,) = problems(tmp_path, text)
    assert line.startswith(f"unknown key {key} (") and "mine.yaml" in line
    assert line.endswith(f"Did you mean {meant}?") or not meant


def test_all_unknown_keys_are_reported_at_once(tmp_path):
    lines = problems(tmp_path, "MODEL: {A: 1, RETINANET: {B: 2}}\nC: 3\n")
    assert [line.split()[2] for line in lines] == ["MODEL.A", "MODEL.RETINANET.B", "C"]


def test_unknown_keys_of_the_command_line(tmp_path):
    (line,) = problems(tmp_path, "VERSION: 2", ["SOLVER.BASE_LRR", "0.1", "SOLVER.MAX_ITER", "3"])
    assert line == "unknown key SOLVER.BASE_LRR (command line). Did you mean SOLVER.BASE_LR?"


@pytest.mark.parametrize(
    "text, opts, parts",
    [
        ("MODEL: [", (), ["mine.yaml", "not YAML", "line 1"]),
        ("just words", (), ["mine.yaml", "not a YAML mapping"]),
        ("", (), ["mine.yaml", "empty file"]),
        ("_BASE_: nowhere.yaml", (), ["nowhere.yaml"]),
        ("SOLVER: {MAX_ITER: many}", (), ["mine.yaml", "SOLVER.MAX_ITER", "str", "int"]),
        ("MODEL: {RETINANET: }", (), ["mine.yaml", "MODEL.RETINANET is a section", "None"]),
        ("VERSION: 2", ("MODEL.RETINANET", "3"), ["command line", "MODEL.RETINANET is a section", "3"]),
        ("VERSION: 2", ("SOLVER.MAX_ITER", "many"), ["command line", "SOLVER.MAX_ITER"]),
        ("VERSION: 2", ("SOLVER.MAX_ITER",), ["pairs", "SOLVER.MAX_ITER"]),
    ],
)
def test_unusable_files_and_values(tmp_path, text, opts, parts):
    (line,) = problems(tmp_path, text, opts)
    assert all(part in line for part in parts), line


def test_missing_file():
    with pytest.raises(ConfigError, match="no/such.yaml"):
        merge_config(make_cfg(), "no/such.yaml")


@pytest.fixture
def warnings_again():
    _warn_of_old_name.cache_clear()


@pytest.mark.parametrize("old, new", sorted(RENAMED_KEYS.items()))
def test_an_old_name_of_a_key_sets_the_new_one_and_warns_once(tmp_path, caplog, warnings_again, old, new):
    section, name = old.split(".")
    (tmp_path / "base.yaml").write_text(f"{section}: {{{name}: 7}}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: base.yaml\nSEED: 1\n")
    cfg = make_cfg()
    merge_config(cfg, str(tmp_path / "mine.yaml"))
    assert dict(flatten(cfg))[new] == 7 and old not in dict(flatten(cfg))
    merge_config(cfg, opts=[old, "9", new, "9"])
    assert dict(flatten(cfg))[new] == 9
    assert caplog.text.count(f"{old} is the old name of {new}") == 1


def test_an_old_and_a_new_name_with_different_values_are_refused(tmp_path):
    text = "SOLVER: {AUTO_SCALE: 16, REFERENCE_BATCH_SIZE: 8}\n"
    (line,) = problems(tmp_path, text)
    assert "SOLVER.AUTO_SCALE is 16, but SOLVER.REFERENCE_BATCH_SIZE, its new name, 8" in line
    opts = ["TEST.LOSS_PERIOD", "5", "TEST.VAL_LOSS_PERIOD", "6"]
    (line,) = problems(tmp_path, "VERSION: 2", opts)
    assert line.startswith("command line: TEST.LOSS_PERIOD is 5, but TEST.VAL_LOSS_PERIOD")


@pytest.mark.parametrize("version", ["VERSION: 1\n", ""])
def test_a_file_of_version_1_is_converted_as_detectron2_converts_it(tmp_path, version):
    path = tmp_path / "old.yaml"
    path.write_text(f"{version}MODEL: {{WEIGHT: a.pth, RETINANET: {{NUM_CLASSES: 3}}}}\nTEST: {{AUG_ON: True}}\n")
    cfg, theirs = make_cfg(), make_cfg()
    theirs.merge_from_file(str(path))
    merge_config(cfg, str(path))
    assert cfg.dump() == theirs.dump()
    assert (cfg.MODEL.WEIGHTS, cfg.TEST.AUG.ENABLED, cfg.VERSION) == ("a.pth", True, 2)


def test_unknown_keys_of_a_file_of_version_1(tmp_path):
    (line,) = problems(tmp_path, "MODEL: {WEIGHT: a.pth, RETINANET: {NUM_CLASES: 3}}")
    assert "MODEL.RETINANET.NUM_CLASES" in line and line.endswith("Did you mean MODEL.RETINANET.NUM_CLASSES?")
    (line,) = problems(tmp_path, "VERSION: 1\nIMPORTS: [mine]\n")
    assert "IMPORTS in a file of VERSION 1" in line
