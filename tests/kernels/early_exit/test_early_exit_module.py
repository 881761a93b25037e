"""The module on top of the early-exit step."""

import pytest
import torch

from early_exit_steps import (
    WRITTEN,
    make_step,
)
from ladder import check_never_silent
from specdec_kernels import EarlyExitAdapter, LMHeadTopK, tree_attention


def test_module_step_equals_project_attend_and_head(kernel_device):
    torch.manual_seed(0)
    module = EarlyExitAdapter(64, 4, 2, 16, rope_theta=500.0).to(kernel_device)
    head = LMHeadTopK(torch.nn.Linear(64, 90, bias=False)).to(kernel_device)
    step = make_step(device=kernel_device, vocabulary=90)
    del step["adapter"], step["head"]
    hidden, at = step["hidden"][:, None], step["positions"][:, None]
    with torch.no_grad():
        q, k, v = module.project(hidden, at)
        k_cache, v_cache = step["k_cache"].clone(), step["v_cache"].clone()
        k_cache[step["cache_rows"], :, step["prefix_lens"]] = k[:, :, 0]
        v_cache[step["cache_rows"], :, step["prefix_lens"]] = v[:, :, 0]
        nodes = {
            "prefix_lens": step["prefix_lens"], "cache_rows": step["cache_rows"],
            "ancestors": torch.ones_like(at)[..., None], "depth": torch.zeros_like(at),
        }  # fmt: skip
        read, again = (
            module.finish(hidden, tree_attention(q, k_cache, v_cache, **nodes, impl=impl))
            for impl in ("reference", "triton")
        )
        torch.testing.assert_close(read, again)
        sure = head.confidence(read[:, 0])
        for impl in ("auto", "reference", "triton"):
            found = {name: step[name].clone() for name in WRITTEN}
            module.step(**{**step, **found}, head=head, impl=impl)
            assert torch.equal(found["tokens"], sure.tokens)
            torch.testing.assert_close(found["confidence"], sure.confidence)
            torch.testing.assert_close(found["k_cache"], k_cache)
            torch.testing.assert_close(found["v_cache"], v_cache)


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@torch.no_grad()
def test_module_step_validates_arguments_like_the_op(impl, kernel_device):
    module = EarlyExitAdapter(64, 4, 2, 16).to(kernel_device)
    head = LMHeadTopK(torch.nn.Linear(64, 90, bias=False)).to(kernel_device)
    step = make_step(device=kernel_device, vocabulary=90)
    del step["adapter"]
    step["head"] = head
    for name in ("prefix_lens", "positions", "cache_rows"):
        with pytest.raises(ValueError, match=rf"{name}: expected shape \[3\], got \[1\]"):
            module.step(**{**step, name: step[name][:1]}, impl=impl)
    with pytest.raises(TypeError, match="stopped: expected torch.bool, got torch.int32"):
        module.step(**{**step, "stopped": step["stopped"].int()}, impl=impl)
    with pytest.raises(ValueError, match="device: expected all tensors on one device"):
        module.step(**{**step, "tokens": step["tokens"].to("meta")}, impl=impl)
    check_never_silent(lambda impl: module.step(**step, impl=impl))
