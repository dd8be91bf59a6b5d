"""Detectron2 works on current releases of what it needs, and its absence is explained."""

import subprocess
import sys
import textwrap

import detectron2.model_zoo
import pytest

import retina_plugin


@pytest.fixture
def run(python):
    return lambda code: python.run("-c", textwrap.dedent(code))


def test_without_detectron2_one_error_names_three_ways(run):
    result = run("import sys; sys.modules['detectron2'] = None; import retina_plugin")
    assert result.returncode == 1
    last = result.stderr[result.stderr.index("ImportError: ") :]
    assert last.startswith("ImportError: retina_plugin needs Detectron2")
    for way in ("github.com/facebookresearch/detectron2", "conda install", "make setup"):
        assert way in last
    assert "During handling" not in result.stderr


def test_a_broken_detectron2_keeps_its_own_error(run):
    result = run("import sys; sys.modules['fvcore'] = None; import retina_plugin")
    assert result.returncode == 1 and "fvcore" in result.stderr.splitlines()[-1]


def test_nothing_is_repaired_where_nothing_is_missing(run):
    """In a process that has been repaired, a second look finds nothing to do."""
    result = run(
        """
        import importlib, sys
        import PIL.Image
        import retina_plugin.detectron2_compat as compat
        from detectron2.evaluation import COCOEvaluator
        before = dict(vars(PIL.Image)), dict(sys.modules), COCOEvaluator.__init__
        importlib.reload(compat)
        assert compat.APPLIED == [], compat.APPLIED
        assert (dict(vars(PIL.Image)), dict(sys.modules), COCOEvaluator.__init__) == before
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif("detectron2._C" not in sys.modules or hasattr(sys.modules["detectron2._C"], "__file__"),
                    reason="this Detectron2 has its compiled part")  # fmt: skip
def test_an_operator_that_is_not_built_says_so():
    from detectron2 import _C
    from detectron2.utils.collect_env import collect_env_info

    assert not hasattr(_C, "COCOevalEvaluateImages")
    with pytest.raises(AttributeError, match="without its compiled part"):
        _ = _C.nms_rotated
    assert "not built" in collect_env_info()


def test_importing_warns_of_nothing():
    """Of what Detectron2 and fvcore do, those who import them can change nothing. With an interpreter of its own."""
    code = "import warnings; warnings.simplefilter('always'); import retina_plugin.engine, detectron2.model_zoo"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_model_zoo_imports_without_pkg_resources(run):
    result = run(
        """
        import sys
        sys.modules["pkg_resources"] = None
        import retina_plugin
        assert "pkg_resources" in retina_plugin.detectron2_compat.APPLIED
        assert "pkg_resources" not in sys.modules
        from detectron2 import model_zoo
        print(model_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
        try:
            model_zoo.get_config_file("no.yaml")
        except RuntimeError as error:
            print(error)
        """
    )
    assert result.returncode == 0, result.stderr
    assert "retinanet_R_50_FPN_1x" in result.stdout and "no.yaml not available" in result.stdout


def test_export_and_analysis_import_without_caffe2(run):
    result = run(
        """
        import retina_plugin
        import torch
        from detectron2.config import get_cfg
        from detectron2.export import TracingAdapter, scripting_with_instances
        from detectron2.utils.analysis import FlopCountAnalysis
        if "export" in retina_plugin.detectron2_compat.APPLIED:
            from detectron2.export import Caffe2Model, Caffe2Tracer, add_export_config, export_onnx_model
            loading = lambda: Caffe2Model.load_protobuf(".")
            for use in (lambda: Caffe2Tracer(get_cfg(), None, []), loading, export_onnx_model):
                try:
                    use()
                except RuntimeError as error:
                    assert "needs caffe2, which torch no longer has. Trace the model" in str(error)
                else:
                    raise AssertionError("no error")
            cfg = add_export_config(get_cfg())
            assert cfg.EXPORT_CAFFE2.USE_HEATMAP_MAX_KEYPOINT is False
            cfg.freeze()
            assert add_export_config(cfg).is_frozen()
        traced = torch.jit.trace(TracingAdapter(torch.nn.ReLU(), torch.zeros(2)), torch.zeros(2))
        assert traced(torch.tensor([-1.0, 1.0]))[0].tolist() == [0, 1]
        flops = FlopCountAnalysis(torch.nn.Conv2d(3, 5, 1), torch.zeros(1, 3, 8, 8)).total()
        assert flops == 3 * 5 * 64, flops
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif("zoo_configs" not in retina_plugin.detectron2_compat.APPLIED, reason="the zoo has its files")
@pytest.mark.parametrize("call", ["get_config_file", "get_config", "get"])
def test_a_zoo_without_files_says_where_those_of_retinanet_are(call):
    name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    with pytest.raises(RuntimeError, match=r"retina_plugin\.model_zoo\.get_config_file\(NAME\)"):
        getattr(detectron2.model_zoo, call)(name)
    assert retina_plugin.model_zoo.get_config_file(name).endswith(name)
