"""Fitted anchors fit, and their gain is that of other images."""

import json

import numpy as np
import pytest
import yaml

from retina_plugin.tools.anchors.coverage import measure_coverage
from retina_plugin.tools.anchors.fit import fit_anchors, print_fitted_anchors
from retina_plugin.tools.anchors.training_set import read_training_config, read_training_images

from .sets import random_boxes, write_config, write_set


@pytest.fixture
def cfg(tmp_path, seed):
    """Tall boxes of about 12 x 36 pixels, for which square anchors of 16, 32 and 64 are configured."""
    rng = np.random.default_rng(seed)
    json_file, images = write_set(tmp_path, [random_boxes(rng, 6, rng.uniform(18, 24, 6), 3.0) for _ in range(24)])
    config = write_config(tmp_path, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]])
    return read_training_config(json_file=json_file, image_root=images, config_file=str(config))


def test_the_gain_is_that_of_the_boxes_that_were_held_out(cfg):
    images = read_training_images(cfg)
    fitted = fit_anchors(cfg, images, num_ratios=1, seed=3)
    assert (fitted.fitted_images, fitted.test_images, fitted.test_boxes) == (18, 6, 36)
    assert fitted.is_better and 1.8 < fitted.ratios[0] < 4  # boxes between the anchors' places like squarer ones
    order = np.random.default_rng(3).permutation(24)
    held_out = [images[i] for i in order[:6]]
    for quality in (fitted.before, fitted.after):
        coverage = measure_coverage(cfg, held_out, ["a", "b", "c"])
        assert quality.mean_iou == pytest.approx(coverage.iou.mean(), abs=1e-6)
        assert quality.reached == pytest.approx([(coverage.iou >= t).mean() for t in (0.4, 0.5)])
        fitted.set(cfg)  # for the second time
    # The IoU with a square of the same area and center is 0.577 / 1.423.
    assert fitted.before.reached[1] == 0 and fitted.after.reached[1] > 0.6


def test_it_repeats_and_few_images_are_not_split(cfg):
    images = read_training_images(cfg)
    assert fit_anchors(cfg, images, num_scales=2, seed=1) == fit_anchors(cfg, images, num_scales=2, seed=1)
    single = fit_anchors(cfg, images[:1])
    assert (single.fitted_images, single.test_images, single.test_boxes) == (1, 0, 6)


def test_the_yaml_is_what_was_measured(cfg, tmp_path, capsys):
    fitted = print_fitted_anchors(cfg, num_scales=2, num_ratios=2, output_dir=tmp_path)
    written = yaml.safe_load((tmp_path / "anchors.yaml").read_text())["MODEL"]["ANCHOR_GENERATOR"]
    assert written == {"SIZES": fitted.sizes, "ASPECT_RATIOS": [fitted.ratios]}
    assert [len(level) for level in fitted.sizes] == [2, 2, 2] and len(fitted.ratios) == 2
    # Each level has the sizes of the one before times two.
    assert np.allclose(np.array(fitted.sizes[1:]), 2 * np.array(fitted.sizes[:-1]))
    report = json.loads((tmp_path / "fit.json").read_text())
    assert report["after"]["mean_iou"] == fitted.after.mean_iou
    out = capsys.readouterr().out
    assert f"{fitted.after.mean_iou:.3f}" in out and fitted.yaml() in out
