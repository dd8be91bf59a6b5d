"""The Triton kernel compiles to machine code for GPUs, also on a machine without one."""

import os
import subprocess
import sys

import pytest

COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from retina_plugin.losses.fused import triton

capability, dtype = int(sys.argv[1]), sys.argv[2]
TYPES = {"logits": "*" + dtype, "gradient": "*" + dtype, "labels": "*i32", "I": "i32", "count": "i32"}
TYPES |= dict.fromkeys(["partial", "scale", "written_scale"], "*fp32")
for kernel, blocks in ((triton._planes, {"BLOCK": 1024, "CLASSES": 8}), (triton._rows, {"BLOCK": 2048})):
    for weight, gamma, write, rewrite in (
        ("fp32", 2.0, True, False), ("*fp32", 0.7, True, True), ("fp32", 0.0, False, False)
    ):
        constants = dict(K=80, GAMMA=gamma, STEEPNESS=2.0, SHIFT=1.0, WEIGHT_A_CLASS=weight[0] == "*", WRITE=write)
        constants |= {"REWRITE": rewrite, **blocks}
        weights = dict.fromkeys(["positive_weight", "negative_weight"], weight)
        signature = {n: (TYPES | weights).get(n, "constexpr") for n in kernel.arg_names}
        positions = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*"}
        source = ASTSource(kernel, signature, constexprs=positions, attrs=aligned)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32))
        stores = compiled.asm["ptx"].count("st.global")
        assert len(compiled.asm["cubin"]) > 1000
        print(kernel.fn.__name__, weight, "stores" if stores > 1 else "sum only" if stores else "nothing")
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability, dtype", [(80, "bf16"), (90, "fp16"), (90, "fp32")])
def test_compiles(capability, dtype, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, str(capability), dtype],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = ["_planes", "_rows"]
    assert done.stdout.splitlines() == [
        f"{kernel} {weight} {what}"
        for kernel in kernels
        for weight, what in (("fp32", "stores"), ("*fp32", "stores"), ("fp32", "sum only"))
    ]
