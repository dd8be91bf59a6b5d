"""YAML of configuration files: no code of a file runs, no file hangs, and messages hold none of their content."""

import os
import textwrap

import pytest
import yaml
from detectron2.config import CfgNode

from retina_plugin import ConfigError, get_cfg, merge_config
from retina_plugin.__main__ import main
from retina_plugin.config.yaml_file import parse_yaml, read_yaml
from retina_plugin.engine import argument_parser, load_config

CODE = {
    "object/apply": "!!python/object/apply:os.system ['touch {mark}']",
    "object/apply of a class": "!!python/object/apply:subprocess.Popen [['touch', '{mark}']]",
    "object/new": "!!python/object/new:subprocess.Popen [['touch', '{mark}']]",
    "object": "!!python/object:pathlib.Path {{}}",
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "eval of a call": "!!python/object/apply:eval [\"__import__('os').system('touch {mark}')\"]",
    "eval with names": "!!python/object/apply:eval ['1', {{}}]",
    "verbatim tag": "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {mark}']",
    "tag of a directive": "!p!object/apply:os.system ['touch {mark}']",
    "a tag of nobody": "!mine 3",
}


@pytest.fixture(params=CODE)
def unsafe(request, tmp_path):
    """A configuration that names code, and the file that the code would write."""
    mark = tmp_path / "mark"
    text = "OUTPUT_DIR: " + CODE[request.param].format(mark=mark) + "\n"
    if "directive" in request.param:
        text = "%TAG !p! tag:yaml.org,2002:python/\n---\n" + text
    path = tmp_path / "config.yaml"
    path.write_text(text)
    yield path, mark
    assert not mark.exists()


def refused(call, *parts):
    with pytest.raises(ConfigError) as error:
        call()
    (line,) = error.value.problems
    assert "\n" not in line and all(part in line for part in parts), line
    return line


def test_code_is_refused_by_everything_that_reads_a_config(unsafe, tmp_path, capsys):
    path, _ = unsafe
    tag = "the tag !"
    line = refused(lambda: merge_config(get_cfg(), str(path)), str(path), tag, "--allow-unsafe-yaml")
    assert ", line 1" in line or ", line 3" in line
    refused(lambda: load_config(argument_parser().parse_args(["--config-file", str(path)])), tag)
    (tmp_path / "child.yaml").write_text("_BASE_: config.yaml\n")
    refused(lambda: merge_config(get_cfg(), str(tmp_path / "child.yaml")), str(path), tag)
    commands = [
        ["check-data", "x", "--config-file", str(path)],
        ["visualize", str(tmp_path)],
        ["contact-sheet", str(tmp_path)],
    ]
    for command in commands:
        assert main(command) == 2
        assert tag in capsys.readouterr().err


def test_convert_refuses_code_in_the_config_beside_the_weights(unsafe, tmp_path, capsys):
    import torch

    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "model.pth")
    assert main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "out"), "--to", "torchvision"]) == 2
    assert "the tag !" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_files_of_an_older_version_are_read_once_and_without_code(tmp_path):
    path, mark = tmp_path / "old.yaml", tmp_path / "mark"
    path.write_text(f"VERSION: 1\nMODEL: {{WEIGHT: !!python/object/apply:os.system ['touch {mark}']}}\n")
    refused(lambda: merge_config(get_cfg(), str(path)), "os.system")
    assert not mark.exists()


def test_the_flag_runs_what_a_file_names(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text("OUTPUT_DIR: !!python/object/apply:os.path.join [a, b]\nDATASETS: {TEST: []}\n")
    args = argument_parser().parse_args(["--config-file", str(path), "--allow-unsafe-yaml", "--eval-only"])
    with pytest.raises(ConfigError) as error:  # of the empty DATASETS.TEST
        load_config(args)
    assert "tag" not in str(error.value)
    cfg = get_cfg()
    merge_config(cfg, str(path), allow_unsafe=True)
    assert cfg.OUTPUT_DIR == os.path.join("a", "b")
    assert "the code that it names runs" in caplog.text


def test_arithmetic_and_tuples_of_detectron2s_files_are_plain_values(tmp_path):
    sizes = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"
    path = tmp_path / "theirs.yaml"
    path.write_text(f"""
MODEL:
  ANCHOR_GENERATOR:
    SIZES: !!python/object/apply:eval ["{sizes}"]
INPUT:
  MIN_SIZE_TRAIN: !!python/tuple [640, 800]
""")
    cfg, theirs = get_cfg(), get_cfg()
    merge_config(cfg, str(path))
    theirs.merge_from_file(str(path))  # Detectron2's own reading, with eval
    assert cfg.dump() == theirs.dump()
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 800)


def test_bases_merge_as_fvcore_merges_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("MODEL: {X: 1, Y: {Z: 2}}\nL: [1, 2]\n")
    (tmp_path / "sub" / "b.yaml").write_text("_BASE_: ../a.yaml\nMODEL: {Y: {Z: 3, W: 4}}\n")
    (tmp_path / "c.yaml").write_text("MODEL: {Y: {V: 5}}\nM: text\n")
    (tmp_path / "d.yaml").write_text(f"_BASE_: [sub/b.yaml, {tmp_path}/c.yaml]\nMODEL: {{X: 6}}\nL: [3]\n")
    path = str(tmp_path / "d.yaml")
    assert read_yaml(path) == CfgNode.load_yaml_with_base(path)
    assert read_yaml(path)["MODEL"] == {"X": 6, "Y": {"Z": 3, "W": 4, "V": 5}}


def test_an_alias_is_a_value_of_its_own_where_a_child_overrides_it(tmp_path):
    (tmp_path / "base.yaml").write_text("A: &a {K: 1}\nB: *a\n")
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml\nA: {K: 2}\n")
    assert read_yaml(tmp_path / "child.yaml") == {"A": {"K": 2}, "B": {"K": 1}}


@pytest.mark.parametrize("bases", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "./b", "b": "[c, c]", "c": "link"}])
def test_a_base_that_leads_back(bases, tmp_path):
    (tmp_path / "link.yaml").symlink_to(tmp_path / "a.yaml")
    for name, base in bases.items():
        base = base.replace("[c, c]", "[c.yaml, c.yaml]") if "[" in base else f"{base}.yaml"
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}\n")
    refused(lambda: read_yaml(tmp_path / "a.yaml"), "leads back", "a.yaml ->")


def test_many_bases_of_many_bases_are_read_once(tmp_path):
    for i in range(30):
        base = f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n" if i < 29 else ""
        (tmp_path / f"{i}.yaml").write_text(f"{base}SEED: {i}\n")
    assert read_yaml(tmp_path / "0.yaml") == {"SEED": 0}


NOT_A_CONFIG = {
    "aliases of aliases": "a: &a [s3cret]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
    ),
    "dicts of aliases": "a: &a {s3cret: 1}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{x: *{chr(97 + i)}, y: *{chr(97 + i)}}}\n" for i in range(20)
    ),
    "an alias of its own": "a: &a {b: *a, c: s3cret}\n",
    "nested without end": "a: " + "[" * 5000 + "s3cret",
    "not YAML": "a: [s3cret\nb: {",
    "a tab": "a:\n\t- s3cret",
    "text": "root:x:0:0:s3cret:/root:/bin/bash\n",
    "a list": "- s3cret\n- b\n",
    "nothing": "",
    "binary": "s3cret\0\1\2",
    "a date of no calendar": "a: 2001-99-99 # s3cret",
    "base64 that is none": "a: !!binary s3cret!!",
    "a key that is a list": "[s3cret, b]: 3",
    "two documents": "a: 1\n--- \nb: s3cret",
    "a web page": "<!DOCTYPE html><html>s3cret</html>",
    "too large": "# s3cret\n" + "#" * 2**20,
    "base is no path": "_BASE_: {s3cret: 1}",
    "version of the future": "VERSION: 99\ns3cret: 1",
    "Python": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_A_CONFIG)
def test_what_is_no_config_gets_one_sentence_without_its_content(kind, tmp_path):
    path = tmp_path / ("lazy.py" if kind == "Python" else "mine.yaml")
    path.write_text(NOT_A_CONFIG[kind] or "s3cret = L(Model)()")
    line = refused(lambda: merge_config(get_cfg(), str(path)), str(path))
    assert "s3cret" not in line and len(line) < 400
    if kind == "Python":
        assert "LazyConfig" in line


def test_files_that_never_end_are_not_opened(tmp_path, python):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "child.yaml").write_text("_BASE_: pipe.yaml\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    script = textwrap.dedent("""
        import sys
        from retina_plugin import ConfigError, get_cfg, merge_config
        for path in sys.argv[1:]:
            try:
                merge_config(get_cfg(), path)
            except ConfigError as error:
                print(error)
    """)
    names = ["pipe.yaml", "child.yaml", "loop.yaml", "endless.yaml", "."]
    paths = [str(tmp_path / name) for name in names]
    done = python.run("-c", script, *paths, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths) and done.returncode == 0, done.stdout + done.stderr
    for line, kind in zip(lines, ["named pipe", "named pipe", "circle", "device", "folder"]):
        assert kind in line


def test_an_address_that_cannot_be_fetched_is_one_sentence(tmp_path):
    (tmp_path / "child.yaml").write_text("_BASE_: http://localhost:9/none.yaml\n")
    refused(lambda: read_yaml(tmp_path / "child.yaml"), "http://localhost:9/none.yaml", "_BASE_ of")


def test_plain_yaml_is_what_pyyaml_reads(seed):
    text = yaml.safe_dump({"A": {"B": [1, 2.5, None, True, "x"]}, "C": "1e3", "D": {}})
    assert parse_yaml(text, "mine") == yaml.safe_load(text)
