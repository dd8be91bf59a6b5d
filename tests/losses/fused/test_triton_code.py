"""The Triton kernel compiles to machine code for GPUs, also on a machine without one."""

import os
import subprocess
import sys

import pytest

CASES = [(80, "bf16"), (90, "fp16"), (90, "fp32")]  # compute capability of a GPU, type of the logits
COMPILE = """
import itertools
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from retina_plugin.losses.fused import triton

KERNELS = (triton._planes, {"BLOCK": 1024, "CLASSES": 8}), (triton._rows, {"BLOCK": 2048})
SETTINGS = ("fp32", 2.0, True, False), ("*fp32", 0.7, True, True), ("fp32", 0.0, False, False)
for (capability, dtype), (kernel, blocks), settings in itertools.product(CASES, KERNELS, SETTINGS):
    weight, gamma, write, rewrite = settings
    types = {"logits": "*" + dtype, "gradient": "*" + dtype, "labels": "*i32", "I": "i32", "count": "i32"}
    types |= dict.fromkeys(["partial", "scale", "written_scale"], "*fp32")
    types |= dict.fromkeys(["positive_weight", "negative_weight"], weight)
    constants = dict(K=80, GAMMA=gamma, STEEPNESS=2.0, SHIFT=1.0, WEIGHT_A_CLASS=weight[0] == "*", WRITE=write)
    constants |= {"REWRITE": rewrite, **blocks}
    signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
    positions = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*"}
    source = ASTSource(kernel, signature, constexprs=positions, attrs=aligned)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32))
    stores = compiled.asm["ptx"].count("st.global")
    assert len(compiled.asm["cubin"]) > 1000
    what = "stores" if stores > 1 else "sum only" if stores else "nothing"
    print(capability, dtype, kernel.fn.__name__, weight, what)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Lines about all cases, from a process that does not interpret the kernels as the tests do."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"CASES = {CASES}\n{COMPILE}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("capability, dtype", CASES)
def test_compiles(capability, dtype, compiled):
    case = f"{capability} {dtype} "
    assert [line.removeprefix(case) for line in compiled if line.startswith(case)] == [
        f"{kernel} {weight} {what}"
        for kernel in ("_planes", "_rows")
        for weight, what in (("fp32", "stores"), ("*fp32", "stores"), ("fp32", "sum only"))
    ]
