"""Training on COCO files of one's own, from the command line alone, and what later commands find."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from retina_plugin import ConfigError, get_cfg
from retina_plugin.config.coco_files import _registered, add_coco_file, register_coco_files
from retina_plugin.engine import argument_parser, load_config
from retina_plugin.tools.visualize.run import visualize_run

from .conftest import write_coco

CATEGORIES = [{"id": 3, "name": "oak"}, {"id": 7, "name": "ash"}]
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SEED", "3"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "SOLVER.STEPS", "()"),
    *("SOLVER.MAX_ITER", "3", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
)


@pytest.fixture
def forget():
    """Forgets what this process has registered, as a new process would not know it."""

    def forget():
        for name in list(_registered):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
            del _registered[name]

    yield forget
    forget()


@pytest.fixture
def own(tmp_path, forget):
    """Folder with train.json, train/, test.json and test/, the arguments that name them, relative to it."""
    for split, count in (("train", 6), ("test", 3)):
        path, _ = write_coco(tmp_path, split, count, CATEGORIES)
        path.rename(tmp_path / f"{split}.json")
    arguments = [f"--{split}-{what}" for split in ("train", "test") for what in ("json", "images")]
    return tmp_path, dict(zip(arguments, ("train.json", "train", "test.json", "test")))


def load(arguments, *opts, parser=argument_parser, flags=()):
    words = [str(word) for pair in arguments.items() for word in pair]
    return load_config(parser().parse_args([*flags, *words, *SMALL, *opts]))


def test_names_classes_and_paths_come_from_the_files(own, monkeypatch):
    folder, arguments = own
    monkeypatch.chdir(folder)
    cfg = load(arguments)
    assert cfg.DATASETS.TRAIN == ("json_train",) and cfg.DATASETS.TEST == ("json_test",)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2 and cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet"
    assert cfg.DATASETS.COCO_FILES == [
        ["json_train", str(folder / "train.json"), str(folder / "train")],
        ["json_test", str(folder / "test.json"), str(folder / "test")],
    ]
    assert len(DatasetCatalog.get("json_test")) == 3
    assert MetadataCatalog.get("json_test").thing_classes == ["oak", "ash"]


def test_a_training_set_alone_is_not_evaluated(own, monkeypatch):
    folder, arguments = own
    monkeypatch.chdir(folder)
    arguments = {key: value for key, value in arguments.items() if "train" in key}
    assert load(arguments).DATASETS.TEST == ()


def test_keys_of_the_command_line_win(own, monkeypatch):
    folder, arguments = own
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="NUM_CLASSES is 5, but data set 'json_train' has 2 classes"):
        load(arguments, "MODEL.RETINANET.NUM_CLASSES", "5")


def test_an_evaluation_takes_the_classes_of_the_test_set(own, monkeypatch):
    folder, arguments = own
    monkeypatch.chdir(folder)
    arguments = {key: value for key, value in arguments.items() if "test" in key}
    cfg = load(arguments, flags=["--eval-only"])
    assert cfg.DATASETS.TEST == ("json_test",) and cfg.MODEL.RETINANET.NUM_CLASSES == 2


@pytest.mark.parametrize(
    "arguments, opts, what",
    [
        ({"--train-json": "train.json"}, (), "--train-json FILE and --train-images DIR belong together"),
        ({"--test-images": "test"}, (), "--test-json FILE and --test-images DIR belong together"),
        ({"--train-json": "tarin.json", "--train-images": "train"}, (), "--train-json: there is no file tarin.json"),
        ({"--train-json": "train.json", "--train-images": "tarin"}, (), "--train-images: there is no folder tarin"),
        (
            {"--train-json": "train.json", "--train-images": "train"},
            ("DATASETS.TRAIN", "('pets',)"),
            "--train-json and DATASETS.TRAIN both name data sets",
        ),
    ],
)
def test_arguments_that_do_not_fit(own, monkeypatch, arguments, opts, what):
    monkeypatch.chdir(own[0])
    with pytest.raises(ConfigError) as error:
        load(arguments, *opts)
    (line,) = error.value.problems
    assert line.startswith(what)


def test_a_file_that_is_not_cocos_is_one_line(own, monkeypatch):
    folder, arguments = own
    monkeypatch.chdir(folder)
    (folder / "train.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        load(arguments)
    assert [line for line in error.value.problems if "it has no list 'images' of objects" in line]


def test_a_parser_without_these_arguments_works(tmp_path, request):
    config = ("--config-file", str(request.config.rootpath / "configs" / "digits.yaml"))
    args = default_argument_parser().parse_args([*config, "OUTPUT_DIR", str(tmp_path)])
    assert load_config(args).DATASETS.COCO_FILES == []


def test_another_file_under_the_same_name_takes_its_place(own, forget):
    folder, _ = own
    cfg = get_cfg()
    add_coco_file(cfg, "mine", folder / "train.json", folder / "train")
    assert len(DatasetCatalog.get("mine")) == 6
    add_coco_file(cfg, "mine", folder / "test.json", folder / "test")
    assert len(DatasetCatalog.get("mine")) == 3 and len(cfg.DATASETS.COCO_FILES) == 1
    register_coco_files(cfg)


@pytest.mark.parametrize("entry", ["mine", ["mine", "a.json"], ["mine", "a.json", 3], ["", "a.json", "images"], None])
def test_entries_of_another_form(entry):
    cfg = get_cfg()
    cfg.DATASETS.COCO_FILES = [entry]
    with pytest.raises(ConfigError, match=r"an entry is \[name, COCO file, folder of its images\]"):
        register_coco_files(cfg)


def test_names_of_others_are_theirs():
    cfg = get_cfg()
    cfg.DATASETS.COCO_FILES = [["coco_2017_val", "a.json", "images"]]
    with pytest.raises(ConfigError, match="'coco_2017_val', which is registered already"):
        register_coco_files(cfg)


@pytest.mark.slow
def test_train_resume_evaluate_check_and_visualize_without_code(own, python, request, forget):
    folder, arguments = own
    root = request.config.rootpath

    def run(*words):
        result = python.run(*words, cwd=folder)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    data = [word for pair in arguments.items() for word in pair]
    run(root / "train_net.py", *data, *SMALL, "OUTPUT_DIR", "out")
    assert torch.load(folder / "out" / "model_final.pth", weights_only=True)["class_names"] == ["oak", "ash"]
    assert {
        r["category_id"] for r in json.loads((folder / "out/inference/coco_instances_results.json").read_text())
    } <= {3, 7}

    config = ("--config-file", "out/config.yaml")
    log = run(root / "train_net.py", *config, "--resume", "SOLVER.MAX_ITER", "5")
    assert "Starting training from iteration 3" in log
    log = run(root / "train_net.py", *config, "--num-gpus", "2", "--eval-only", "MODEL.WEIGHTS", "out/model_final.pth")
    assert "Evaluation results for json_test" in log
    assert "json_test: 3 images" in run("-m", "retina_plugin", "check-data", "json_test", *config)
    forget()
    (sheet,) = visualize_run(folder / "out")
    assert sheet.is_file()
