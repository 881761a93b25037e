"""The head as an op: registration, compilation, errors, and the module on top."""

import pytest
import torch
from torch import nn

from head_problems import DTYPES, make_head, run
from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import HeadWeights, LMHeadTopK, lm_head_beams, lm_head_confidence, lm_head_topk
from specdec_kernels._ops import ops
from specdec_kernels.testing.poison import poisoned_empty


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_module_equals_the_op(dtype, kernel_device):
    hidden, weight = make_head(4, 48, 140, dtype, 12, kernel_device, integers=1)
    id_map = torch.arange(140, device=kernel_device) * 3
    linear = nn.Linear(48, 140, device=kernel_device, dtype=dtype)
    linear.weight.copy_(weight)
    linear.bias.copy_(weight[:, 0])
    options = {"logit_scale": 0.5, "softcap": 40.0, "id_map": id_map}
    ours, theirs = (LMHeadTopK(linear, **options, impl=impl) for impl in ("triton", "reference"))
    with poisoned_empty():
        found, sure = ours(hidden, 5), ours.confidence(hidden)
    expected = theirs(hidden, 5)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    assert torch.equal(sure.tokens, expected.ids[:, 0])
    torch.testing.assert_close(sure.confidence, theirs.confidence(hidden).confidence)
    with pytest.raises(ValueError, match="gradients are recorded"), torch.enable_grad():
        ours(hidden, 5)


def test_confidence_equals_the_top_tokens_probability(kernel_device):
    hidden, weight = make_head(4, 48, 140, torch.float32, 13, kernel_device)
    with poisoned_empty():
        sure = lm_head_confidence(hidden, weight, impl="triton")
    top = run(hidden, weight, 1)
    assert torch.equal(sure.tokens, top.ids[:, 0])
    assert torch.equal(sure.confidence, top.log_probs[:, 0].exp())


def test_empty_batch_gives_empty_result(kernel_device):
    hidden, weight = make_head(0, 16, 20, torch.float32, 0, kernel_device)
    assert [list(x.shape) for x in run(hidden, weight, 3)] == [[0, 3], [0, 3], [0]]


def test_op_passes_opcheck(kernel_device):
    hidden, weight = make_head(3, 32, 140, torch.float32, 14, kernel_device)
    bias = torch.zeros(140, device=kernel_device)
    id_map = torch.arange(140, device=kernel_device)
    check_op(ops.lm_head_topk, hidden, weight, 4, None, None, None, None, None)
    options = (bias, 0.5, 3.0, torch.bfloat16, id_map)
    check_op(ops.lm_head_topk, hidden, weight, 4, *options)
    check_op(ops.lm_head_topk, hidden[:, :16], weight[::2, 16:], 4, None, None, None, None, None)
    check_op(
        ops.lm_head_topk,
        hidden.T.contiguous().T[:, :1],
        weight[:, :1],
        1,
        None,
        None,
        None,
        None,
        None,
    )


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    check_compiles_whole(
        lambda hidden, weight: lm_head_topk(hidden, HeadWeights(weight, softcap=3.0), 2, impl=impl),
        make_head(3, 32, 140, torch.float32, 15, kernel_device),
        make_head(5, 48, 150, torch.float32, 16, kernel_device),
        dynamic=dynamic,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@torch.no_grad()
def test_module_compiles_with_fullgraph(dynamic, kernel_device):
    linear = nn.Linear(32, 140, device=kernel_device)
    head = LMHeadTopK(linear, impl="triton")
    check_compiles_whole(
        lambda hidden: head(hidden, 2),
        make_head(3, 32, 1, torch.float32, 15, kernel_device)[:1],
        make_head(5, 32, 1, torch.float32, 16, kernel_device)[:1],
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    hidden, weight = make_head(3, 32, 140, torch.float32, 17, kernel_device)

    def call(hidden=hidden, weight=weight, k=2, impl="triton", **options):
        lm_head_topk(hidden, HeadWeights(weight, **options), k, impl=impl)

    check_never_silent(lambda impl: call(impl=impl))
    with pytest.raises(ValueError, match="k: expected 1 to 64"):
        call(k=65)
    for impl in ("triton", "reference"):
        with pytest.raises(
            ValueError, match=r"weight: expected shape \[V >= 1, E\], got \[0, 32\]"
        ):
            call(weight=weight[:0], impl=impl)
    with pytest.raises(
        TypeError, match=r"weight: expected torch.float32 as hidden, got torch.float16"
    ):
        call(weight=weight.half())
    with pytest.raises(
        TypeError, match="hidden: expected float32, float16 or bfloat16 in a kernel"
    ):
        call(hidden=hidden.double(), weight=weight.double())
    with pytest.raises(
        TypeError, match="bias: expected torch.float32 as hidden, got torch.float16"
    ):
        call(bias=torch.zeros(140, dtype=torch.float16, device=kernel_device))
    with pytest.raises(TypeError, match="id_map: expected int64, got torch.float32"):
        call(id_map=torch.zeros(140, device=kernel_device))
    with pytest.raises(
        TypeError, match="round_to: expected float32, float16 or bfloat16 in a kernel"
    ):
        call(round_to=torch.float64)
    with pytest.raises(
        ValueError, match="weight: expected a contiguous last dimension, got strides"
    ):
        call(weight=weight.T.contiguous().T)
    with pytest.raises(ValueError, match="device: expected all tensors on one device, got"):
        call(id_map=torch.zeros(140, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="gradients are recorded"):
        call(hidden=hidden.clone().requires_grad_())


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@torch.no_grad()
def test_module_validates_arguments_like_the_op(impl, kernel_device):
    hidden, _ = make_head(3, 32, 140, torch.float32, 17, kernel_device)
    linear = nn.Linear(32, 140, device=kernel_device)
    head = LMHeadTopK(linear, impl=impl)
    for k in (0, 65):
        with pytest.raises(ValueError, match=f"k: expected 1 to 64 .*, got {k}"):
            head(hidden, k)
    with pytest.raises(ValueError, match="hidden, weight: expected shapes"):
        head(hidden[:, :5], 2)
    with pytest.raises(ValueError, match="device: expected all tensors on one device"):
        LMHeadTopK(linear, id_map=torch.arange(140, device="meta"), impl=impl)(hidden, 2)
    with pytest.raises(ValueError, match="k: expected 1 to 40"):
        LMHeadTopK(nn.Linear(32, 40, device=kernel_device), impl=impl)(hidden, 41)
    check_never_silent(lambda impl: LMHeadTopK(linear, impl=impl)(hidden, 2))


def test_deprecated_separate_options_work_and_warn(kernel_device):
    hidden, weight = make_head(3, 32, 140, torch.float32, 18, kernel_device)
    expected = lm_head_topk(hidden, HeadWeights(weight, softcap=3.0), 2)
    scores = torch.zeros(1, 3, device=kernel_device)
    beams = lm_head_beams(hidden[None], HeadWeights(weight, softcap=3.0), scores, 2)
    with pytest.warns(DeprecationWarning, match=r"head: expected HeadWeights\(.*, got softcap"):
        found = lm_head_topk(hidden, weight, 2, softcap=3.0)
    with pytest.warns(DeprecationWarning, match="got softcap apart"):
        sure = lm_head_confidence(hidden, weight, softcap=3.0)
    with pytest.warns(DeprecationWarning, match="got softcap apart"):
        found_beams = lm_head_beams(hidden[None], weight, scores, 2, softcap=3.0)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(sure.tokens, expected.ids[:, 0])
    assert torch.equal(found_beams.scores, beams.scores)
    with pytest.raises(TypeError, match="head: expected fields of HeadWeights, got cap"):
        lm_head_topk(hidden, weight, 2, cap=3.0)
    with pytest.raises(TypeError, match="head: expected all in HeadWeights, got bias apart"):
        lm_head_topk(hidden, HeadWeights(weight), 2, bias=weight[:, 0])
