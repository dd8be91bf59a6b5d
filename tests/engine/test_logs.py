"""What a start of training shows, and that neither terminal nor log can be controlled by names in the data."""

import json
import logging
import re
import shutil
import sys

import pytest

from retina_plugin.engine.logs import PrintableFormatter

from .test_train_net import CONFIG, SMALL

RED = "\x1b[31m"


@pytest.mark.slow
def test_ten_lines_are_shown_before_training_and_all_of_them_are_in_the_log(tiny_coco, python, tmp_path):
    """With an image of a name that clears the screen, forges a line of the log, and cannot be read."""
    datasets = tmp_path / "datasets"
    shutil.copytree(tiny_coco, datasets)
    json_file = datasets / "coco" / "annotations" / "instances_train2017.json"
    coco = json.loads(json_file.read_text())
    coco["images"][0]["file_name"] = f"\x1b[2J日本\u202e\n[12/01 00:00:00 d2.engine]: {RED}forged\r.jpg"
    json_file.write_text(json.dumps(coco))
    opts = (*SMALL, "SOLVER.MAX_ITER", 8, "LOG_PERIOD", 2, "OUTPUT_DIR", tmp_path / "out", "TEST.EVAL_PERIOD", 0)
    words = (*CONFIG, *opts, "DATASETS.TEST", "()")
    environment = {"DETECTRON2_DATASETS": datasets, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": 1}
    result = python.run("train_net.py", *words, **environment)
    assert result.returncode == 0, result.stderr
    start, _, training = result.stdout.partition("Starting training")
    assert len(start.splitlines()) <= 15, start
    model, data = "FocalRetinaNet with build_p3p7_resnet_fpn_backbone, ", "trained on coco_2017_train (8 images)"
    for part in (
        model,
        data,
        f"Output: {tmp_path / 'out'}",
        "running on the CPU",
        "8 iterations of 2 images are 2 epochs",
    ):
        assert part in start
    assert len(re.findall(r"d2.utils.events.*iter: \d+ .*total_loss: ", training)) == 4

    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("\n") > 400 and "Environment info:" in log and "Running with full config:" in log
    assert "\x1b" not in log
    colors = re.compile("\x1b\\[[0-9;]*m")  # of the prefix
    for text in (log, colors.sub("", result.stdout), result.stderr):
        assert not set(text) & {"\x1b", "\r", "\u202e"} and not re.search("^.{0,20}forged", text, re.MULTILINE)
    assert r"\x1b[2J日本\u202e\n[12/01 00:00:00 d2.engine]:" in log and r"\x1b[2J日本" in result.stdout


def test_without_arguments_it_says_what_to_do(python, request):
    result = python.run("train_net.py")
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    (example,) = (line.split() for line in lines if "quick_start" in line)
    assert (request.config.rootpath / example[example.index("--config-file") + 1]).is_file()
    assert lines[-1] == "error: there is no --config-file" and len(lines) < 12


def test_tracebacks_and_arguments_are_escaped_and_other_handlers_get_the_record_as_it_was():
    formatter = PrintableFormatter(logging.Formatter("%(name)s: %(message)s"))
    try:
        raise ValueError(f"a {RED}name\x1b[2J")
    except ValueError:
        record = logging.LogRecord("d2", logging.ERROR, "", 0, "%s\n%d", (f"{RED}\x07", 3), sys.exc_info())
    text = formatter.format(record)
    assert text.startswith("d2: \\x07\n3\nTraceback") and text.endswith("ValueError: a name\\x1b[2J")
    assert "\x1b" not in text and record.getMessage() == f"{RED}\x07\n3"
