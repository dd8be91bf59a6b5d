"""A run is resumed although what stands beside its checkpoints is damaged."""

import json
import random

import pytest

from retina_plugin.engine.run_state import RunState
from retina_plugin.engine.writers import MetricsWriter

LINE = {"iteration": 3, "total_loss": 1.5}
DAMAGED = [
    *(b"", b"{", b'{"iterat', b"[]", b"3", b"null", b"\xff\xfe\x00", b"\0" * 40, b"[" * 10**5),
    *(b'{"iteration": "4"}', b'{"iteration": null}', b'{"iteration": [4]}', b'{"iteration": {}}', b'{"total_loss": 1}'),
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_lines_of_metrics_that_are_damaged_are_left_out(tmp_path, damaged):
    path, good = tmp_path / "metrics.json", [json.dumps({**LINE, "iteration": i}).encode() for i in range(6)]
    lines = [*good, damaged]
    random.shuffle(lines)
    path.write_bytes(b"\n".join(lines))
    MetricsWriter(path).truncate(4)
    kept = [json.loads(line)["iteration"] for line in path.read_bytes().splitlines()]
    assert sorted(kept) == [0, 1, 2, 3] and path.read_bytes().endswith(b"\n")


STATE = {"iteration": 3, "config": "x", "results": {"test": {"bbox": {"AP": 1.0}}}, "best": None}
BEST = {"metric": "bbox/AP", "mode": "max", "value": 1.0, "iteration": 3}


@pytest.mark.parametrize(
    "damaged",
    [
        *DAMAGED,
        *({**STATE, "iteration": "3"}, {**STATE, "results": []}, {**STATE, "results": {"test": {"bbox": "x"}}}),
        *({**STATE, "best": 3}, {**STATE, "best": {}}, {**STATE, "best": {**BEST, "value": "high"}}),
    ],
)
def test_a_run_state_that_is_damaged_is_a_warning(tmp_path, damaged, caplog):
    text = damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode()
    (tmp_path / "run_state.json").write_bytes(text)
    state = RunState(str(tmp_path), "config")
    state.load()
    assert state.best is None and "run_state.json cannot be used" in caplog.text
    (tmp_path / "run_state.json").write_text(json.dumps({**STATE, "best": BEST}))
    state.load()
    assert state.best == BEST
