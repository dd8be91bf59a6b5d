"""The example of docs/predicting.md runs on a local Ray."""

import re

import numpy as np
import pytest

from retina_plugin import Predictor

ray = pytest.importorskip("ray", reason="the package ray is not installed")
pytest.importorskip("pyarrow", reason="Ray Data needs pyarrow, which is not installed")


@pytest.fixture
def example(request):
    text = (request.config.rootpath / "docs" / "predicting.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Detect" in b)
    namespace: dict = {"__name__": "__main__"}
    exec(block, namespace)
    return namespace["detect_with_ray"]


@pytest.mark.slow
def test_the_example(example, run_folder, photos):
    files = sorted((photos / "images").iterdir())
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
    try:
        rows = example([*files, "missing.jpg"], run_folder).take_all()
    finally:
        ray.shutdown()
    expected = Predictor(run_folder, score_threshold=0.3)(files)
    assert sum(map(len, expected)) > 0
    for found in expected:
        ours = [row for row in rows if row["path"] == found.name]
        assert np.array_equal([row["score"] for row in ours], found.scores)
        assert [row["label"] for row in ours] == found.labels
    assert [row["problem"] for row in rows if row["path"] == "missing.jpg"] == ["there is no such file"]
