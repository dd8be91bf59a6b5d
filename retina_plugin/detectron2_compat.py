"""The only file that knows versions of Detectron2, torch, Pillow and setuptools.

Importing it makes Detectron2 0.6 and the official main branch usable on current releases of what they
depend on. Every repair is a reaction to a failure that has just been seen: where Detectron2 works as it
is, nothing is touched. :data:`APPLIED` names the repairs that this process needed.

==================  ==================================================  =========================================
repair              what it is for                                      when it can go
==================  ==================================================  =========================================
``pillow_linear``   0.6 reads ``PIL.Image.LINEAR``, which Pillow 10     with support for Detectron2 0.6
                    removed; it is the old name of ``BILINEAR``.
``extension``       0.6 imports ``detectron2._C`` in four modules when  with support for Detectron2 0.6 (main
                    it starts, also for models that use no compiled     guards these imports itself)
                    operator, so an installation of the Python part
                    alone does not import. A module without operators
                    stands in, and says so when one is asked for.
``official_coco``   0.6's ``COCOEvaluator`` uses compiled code by       with support for Detectron2 0.6 (main
                    default; without it, the official COCO API is       does the same itself)
                    used instead.
``pkg_resources``   ``detectron2.model_zoo`` (0.6 and main) imports     when ``detectron2.model_zoo`` no longer
                    ``pkg_resources``, which setuptools 81 removed.     imports it
``zoo_configs``     An installation of the Python part has no            never: it only says what is missing
                    configuration files of the model zoo, and its
                    error says that a name does not exist.
``gloo_launch``     0.6's ``launch`` demands CUDA and NCCL in the       with support for Detectron2 0.6 (main
                    processes that it starts. Without a GPU, they use   does the same itself)
                    Gloo.
``export``          0.6's ``detectron2.export`` and                     with support for Detectron2 0.6 (main
                    ``detectron2.utils.analysis`` import ``caffe2``,    does the same itself)
                    which torch no longer has, also for what does not
                    use it. A module stands in for the part that does,
                    and says so when it is used.
``cpu_ddp``         ``create_ddp_model`` (0.6 and main) names a GPU     when Detectron2 leaves ``device_ids`` out
                    also for a model on the CPU, which torch refuses.   for a model on the CPU
==================  ==================================================  =========================================

0.6 also leaves the optimizer out of its checkpoints; :class:`retina_plugin.engine.RetinaTrainer` saves it with both.
"""

import functools
import importlib.machinery
import importlib.resources
import importlib.util
import os
import sys
import types
import warnings
from typing import Any

APPLIED: list[str] = []

_HOW_TO_GET_DETECTRON2 = """\
retina_plugin needs Detectron2, which is not installed in this Python ({python}). Three ways to get it:
  1. from its own repository, compiled:
       pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
  2. from conda-forge:
       conda install -c conda-forge detectron2
  3. version 0.6 without a compiler, from a checkout of retina_plugin (what `make quickstart` does):
       make setup"""


def _require_detectron2():
    try:
        import detectron2  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "detectron2":  # Detectron2 is there and misses something: its own error says what
            raise
        raise ImportError(_HOW_TO_GET_DETECTRON2.format(python=sys.executable)) from None


def _repair_pillow_linear():
    try:
        import detectron2.data.transforms  # noqa: F401
    except AttributeError as error:
        if "LINEAR" not in str(error):
            raise
        image_module: Any = importlib.import_module("PIL.Image")
        image_module.LINEAR = image_module.BILINEAR
        APPLIED.append("pillow_linear")


def _repair_extension():
    if importlib.util.find_spec("detectron2._C") is not None:
        return
    try:
        import detectron2.layers  # noqa: F401
    except ImportError as error:
        if "_C" not in str(error):
            raise
        sys.modules["detectron2._C"] = _extension_stand_in()
        APPLIED.append("extension")


def _extension_stand_in():
    module: Any = types.ModuleType("detectron2._C", "Stands in for Detectron2's compiled operators, and has none.")
    module.__spec__ = importlib.machinery.ModuleSpec("detectron2._C", loader=None)
    not_built = "not built (Python part of Detectron2 only)"
    # What `detectron2.utils.collect_env` prints.
    module.get_compiler_version = lambda: not_built
    module.get_cuda_version = lambda: not_built
    module.has_cuda = lambda: False

    def missing(name):
        raise AttributeError(
            f"detectron2._C.{name} is a compiled operator, and this Detectron2 was installed without its "
            "compiled part. RetinaNet does not need it; for what does, install Detectron2 from its repository."
        )

    module.__getattr__ = missing
    return module


def _repair_official_coco():
    if "extension" not in APPLIED:
        return
    from detectron2.evaluation import COCOEvaluator

    init = COCOEvaluator.__init__

    @functools.wraps(init)
    def with_official_api(self, *args, use_fast_impl=True, **kwargs):
        init(self, *args, use_fast_impl=False, **kwargs)

    COCOEvaluator.__init__ = with_official_api
    APPLIED.append("official_coco")


def _repair_pkg_resources():
    if importlib.util.find_spec("pkg_resources") is not None:
        return
    stand_in: Any = types.ModuleType("pkg_resources", "The one function of pkg_resources that Detectron2 calls.")
    stand_in.resource_filename = lambda package, name: os.path.join(str(importlib.resources.files(package)), name)
    # Seen by this one import and by nobody else: other packages test for pkg_resources, too.
    sys.modules["pkg_resources"] = stand_in
    try:
        import detectron2.model_zoo  # noqa: F401
    finally:
        del sys.modules["pkg_resources"]
    APPLIED.append("pkg_resources")


def _repair_zoo_configs():
    if (importlib.resources.files("detectron2.model_zoo") / "configs").is_dir():
        return
    zoo: Any = importlib.import_module("detectron2.model_zoo.model_zoo")
    package: Any = importlib.import_module("detectron2.model_zoo")
    get_config_file = zoo.get_config_file
    if hasattr(get_config_file, "__wrapped__"):
        return

    @functools.wraps(get_config_file)
    def explained(config_path):
        try:
            return get_config_file(config_path)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error} This installation of Detectron2 has no configuration files at all. Those of RetinaNet are in "
                "retina_plugin: retina_plugin.model_zoo.get_config_file(NAME). Others come with its repository."
            ) from None

    zoo.get_config_file = package.get_config_file = explained
    APPLIED.append("zoo_configs")


def _repair_gloo_launch():
    launch: Any = importlib.import_module("detectron2.engine.launch")
    worker = launch._distributed_worker
    if worker.__module__ == __name__ or "GLOO" in worker.__code__.co_consts:
        return
    launch._nccl_worker = worker
    # Started processes look the function up in this module, so that they are repaired before they import Detectron2.
    launch._distributed_worker = _gloo_worker
    APPLIED.append("gloo_launch")


def _gloo_worker(local_rank, main_func, world_size, num_gpus_per_machine, *args, **kwargs):
    """Detectron2's worker; without a GPU, it is told that there are enough, and its group is Gloo's."""
    launch: Any = importlib.import_module("detectron2.engine.launch")
    import torch

    if not torch.cuda.is_available():
        # What this one function of Detectron2 sees, and nobody else.
        launch.torch = types.SimpleNamespace(
            cuda=types.SimpleNamespace(
                is_available=lambda: True,
                device_count=lambda: num_gpus_per_machine,
                set_device=lambda device: None,
            )
        )
        launch.dist = types.SimpleNamespace(
            init_process_group=lambda backend, **group: torch.distributed.init_process_group("gloo", **group),
            new_group=torch.distributed.new_group,
        )
    launch._nccl_worker(local_rank, main_func, world_size, num_gpus_per_machine, *args, **kwargs)


def _repair_export():
    try:
        import detectron2.export  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "caffe2":
            raise
        sys.modules["detectron2.export.api"] = _caffe2_stand_in()
        importlib.import_module("detectron2.export")
        APPLIED.append("export")


def _caffe2_stand_in():
    module: Any = types.ModuleType("detectron2.export.api", "Stands in for the exports that need caffe2, and has none.")

    def add_export_config(cfg):
        """Add the one key of Detectron2's function of this name, which scripts call for any format."""
        from detectron2.config import CfgNode

        is_frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.EXPORT_CAFFE2 = CfgNode({"USE_HEATMAP_MAX_KEYPOINT": False})
        if is_frozen:
            cfg.freeze()
        return cfg

    def missing(name):
        def use(*args, **kwargs):
            raise RuntimeError(
                f"detectron2.export.{name} needs caffe2, which torch no longer has. Trace the model, by "
                "torch.jit.trace or torch.onnx.export of a detectron2.export.TracingAdapter"
            )

        return use

    module.add_export_config = add_export_config
    for name in ("Caffe2Model", "Caffe2Tracer"):
        use = staticmethod(missing(name))
        setattr(module, name, type(name, (), {"__init__": missing(name), "load_protobuf": use}))
    for name in ("export_caffe2_model", "export_onnx_model"):
        setattr(module, name, missing(name))
    module.__all__ = [name for name in vars(module) if not name.startswith("_")]
    return module


def _repair_cpu_ddp():
    from detectron2.engine import defaults

    create = defaults.create_ddp_model
    if hasattr(create, "__wrapped__"):
        return

    @functools.wraps(create)
    def create_ddp_model(model, **kwargs):
        try:
            return create(model, **kwargs)
        except ValueError as error:
            if "device_ids" not in str(error) or "device_ids" in kwargs:
                raise
        if "cpu_ddp" not in APPLIED:
            APPLIED.append("cpu_ddp")
        return create(model, device_ids=None, **kwargs)

    defaults.create_ddp_model = create_ddp_model


_require_detectron2()
with warnings.catch_warnings():
    # What Detectron2 and fvcore themselves cause while they are imported: nobody who uses them can act on it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    _repair_extension()
    _repair_pillow_linear()
    _repair_official_coco()
    _repair_pkg_resources()
    _repair_zoo_configs()
    _repair_gloo_launch()
    _repair_export()
    _repair_cpu_ddp()
    import detectron2.model_zoo
    import detectron2.modeling  # noqa: F401
# What its anchor generator causes when it is called.
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
