"""The Triton backend on a real GPU: pytest -m gpu. What no interpreter can show."""

from __future__ import annotations

import pytest
import torch

from nerfcli import backends
from nerfcli.backends import ops_triton, selfcheck
from nerfcli.backends.ops import Ops
from nerfcli.radiance import NetParams
from nerfcli.rays import Samples

pytestmark = pytest.mark.gpu

# float32 products on a GPU are exact ones (no TF32), so only the order of sums differs; bfloat16
# holds a log density of 4 within 0.016
LIMITS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


@pytest.fixture(autouse=True)
def on_a_gpu() -> None:
    if reason := backends.unavailable("triton", "cuda"):
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_every_op_agrees_with_the_reference(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "LIMIT", LIMITS[dtype])
    assert selfcheck.fault(ops_triton.build(dtype), "cuda") is None


def gradients(ops: Ops, case: selfcheck.Case, samples: Samples, grads: NetParams) -> None:
    ops.photometric_gradients(
        case.params,
        grads,
        selfcheck.NET,
        selfcheck.BOX,
        case.rays,
        samples,
        case.target,
        case.background,
    )


def test_a_step_is_captured_in_a_graph() -> None:
    """Nothing in it waits for the device or takes memory that a graph cannot give."""
    ops, case = ops_triton.load(), selfcheck.Case("cuda")
    samples = case.march(ops)
    warm, grads = (
        NetParams(*(torch.zeros_like(p) for p in case.params.tensors())) for _ in ("a", "b")
    )
    gradients(ops, case, samples, warm)  # compiles; fills the caches
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients(ops, case, samples, grads)
    for g in grads.tensors():
        g.zero_()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for twice, once in zip(grads.tensors(), warm.tensors(), strict=True):
        # atomic sums come in any order
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6)


def test_nothing_in_a_step_synchronises() -> None:
    ops, case = ops_triton.load(), selfcheck.Case("cuda")
    samples = case.march(ops)
    grads = NetParams(*(torch.zeros_like(p) for p in case.params.tensors()))
    gradients(ops, case, samples, grads)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(ops, case, samples, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(g.isfinite().all() for g in grads.tensors())
