"""Random data sets without a flaw, on disk, and the configuration that they are checked against."""

import pytest
from detectron2.config import get_cfg

from retina_plugin import add_retina_config
from retina_plugin.config import merge_config
from retina_plugin.model_zoo import get_config_file

from .sets import RandomSet


@pytest.fixture
def cfg():
    """The plugin's default anchors on images of the size that fits the sets."""
    cfg = get_cfg()
    add_retina_config(cfg)
    opts = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    opts += ["INPUT.MIN_SIZE_TRAIN", (133, 197), "INPUT.MAX_SIZE_TRAIN", 640]
    merge_config(cfg, get_config_file("Base-RetinaNet.yaml"), opts)
    return cfg


@pytest.fixture
def random_set(tmp_path, seed):
    return RandomSet(tmp_path, seed)
