"""The decoder layer in few operators against its reference, over everything that families differ in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_kernels.decoder_layer import (
    Angles,
    Buffers,
    CpuDecoderLayer,
    LayerWeights,
    LinearWeights,
    NormWeights,
    PlainProduct,
    PrepackedProduct,
    can_prepack,
    decoder_layer_reference,
)
from specdec_kernels.decoder_layer.cpu import attend_rows
from specdec_kernels.decoder_layer.products import POINTWISE

WIDTH, INNER, HEAD = 32, 48, 8
PREFIX = 5


def numbers(*shape, seed, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def make_layer(
    seed=0, dtype=torch.float64, heads=4, kv_heads=2, *, fused=False, bias=False, **options
):
    """A layer with random weights; options are fields of `LayerWeights`, norms by their kind."""

    def linear(*sizes, inputs=WIDTH, at=0):
        weights = [numbers(n, inputs, seed=seed + at + i, dtype=dtype, scale=inputs**-0.5) for i, n in enumerate(sizes)]  # fmt: skip
        biases = [numbers(n, seed=seed + 50 + at + i, dtype=dtype) for i, n in enumerate(sizes)]
        return LinearWeights(tuple(weights), tuple(biases) if bias else ())

    def norm(size, offset, at):
        return NormWeights(numbers(size, seed=seed + at, dtype=dtype), 1e-5, offset)

    offset = options.pop("offset", False)
    norms = options.pop("norms", ("input_norm", "mlp_norm"))
    made = {name: norm(WIDTH, offset, 20 + at) for at, name in enumerate(norms)}
    match options.pop("head_norms", None):
        case "heads":
            made |= {"q_norm": norm(HEAD, offset, 30), "k_norm": norm(HEAD, offset, 31)}
        case "whole":
            made |= {"q_norm": norm(heads * HEAD, offset, 30), "k_norm": norm(kv_heads * HEAD, offset, 31)}  # fmt: skip
        case "queries":
            made |= {"q_norm": norm(HEAD, offset, 30)}
    sizes = [n * HEAD for n in (heads, kv_heads, kv_heads)]
    return LayerWeights(
        heads, kv_heads, HEAD,
        qkv=linear(sum(sizes)) if fused else linear(*sizes),
        output=linear(WIDTH, inputs=heads * HEAD, at=3),
        gate=linear(INNER, at=4), up=linear(INNER, at=5), down=linear(WIDTH, inputs=INNER, at=6),
        **{"activation": "silu", "scale": HEAD**-0.5, **made, **options},
    )  # fmt: skip


class Cached:
    """Keys and values of a prefix, which the nodes of a chain follow; as `LayerPass`, and for the reference."""

    def __init__(self, layer, batch, nodes, dtype):
        shape = (batch, layer.kv_heads, PREFIX + nodes, layer.head_dim)
        self.k, self.v = (numbers(*shape, seed=s, dtype=dtype) for s in (91, 92))
        self.layer, self.nodes = layer, nodes
        seen = torch.ones(nodes, PREFIX + nodes, dtype=torch.bool).tril(PREFIX)
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
        self.mask = bias.repeat_interleave(layer.heads // layer.kv_heads, 0)[None, None]

    def append(self, layer, k, v):
        self.k[:, :, PREFIX:], self.v[:, :, PREFIX:] = k.transpose(1, 2), v.transpose(1, 2)
        return self.k, self.v

    def attend_rows(self, rows, keys, values, *, scale, softcap, window):
        return attend_rows(rows, keys, values, self.mask, scale=scale, softcap=softcap)

    def attend(self, q, k, v):
        keys, values = self.append(0, k, v)
        group = self.layer.heads // self.layer.kv_heads
        scores = q.transpose(1, 2) @ keys.repeat_interleave(group, 1).mT * self.layer.scale
        if (cap := self.layer.softcap) is not None:
            scores = cap * torch.tanh(scores / cap)
        mask = self.mask[:, :, ::group]
        shares = (scores + mask).float().softmax(-1) if scores.dtype.itemsize == 2 else (scores + mask).softmax(-1)  # fmt: skip
        return (shares.to(values.dtype) @ values.repeat_interleave(group, 1)).transpose(1, 2)


def angles_of(batch, nodes, rotary, dtype):
    half = numbers(batch, nodes, rotary // 2, seed=70, scale=3.0)
    both = torch.cat([half, half], -1)
    return both.cos().to(dtype), both.sin().to(dtype)


@torch.inference_mode()
def both(layer, *, batch=2, nodes=3, rotary=HEAD, product=PlainProduct, dtype=torch.float64):
    hidden = numbers(batch, nodes, WIDTH, seed=80, dtype=dtype)
    cos, sin = angles_of(batch, nodes, rotary, dtype)
    caches = [Cached(layer, batch, nodes, dtype) for _ in range(2)]
    expected = decoder_layer_reference(hidden, layer, cos, sin, caches[0].attend)
    turned = None if layer.rotation is None else Angles.of(cos, sin, layer.rotation)
    buffers = Buffers(layer, hidden, rotary)
    lean = CpuDecoderLayer(layer, product)
    for _ in range(2):  # the second time buffers hold something
        found = lean(hidden.flatten(0, 1), 0, turned, buffers, caches[1]).view_as(hidden)
    return found, expected, caches


CHANGES = {
    "llama": {},
    "offset": {"offset": True, "activation": "gelu_tanh"},
    "sandwich": {"norms": ("input_norm", "attention_norm", "mlp_norm", "output_norm"), "offset": True},
    "post": {"norms": ("attention_norm", "output_norm"), "head_norms": "whole"},
    "heads": {"head_norms": "heads"},
    "queries": {"head_norms": "queries"},
    "no-norms": {"norms": ()},
    "bias": {"bias": True},
    "fused": {"fused": True, "bias": True},
    "interleaved": {"rotation": "interleaved"},
    "no-rotation": {"rotation": None},
    "softcap": {"softcap": 2.0},
    "residual": {"residual_scale": 0.3},
    "gelu": {"activation": "gelu", "scale": 0.7},
    "alike": {"heads": 3, "kv_heads": 3},
    "one-group": {"heads": 6, "kv_heads": 1},
}  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 5])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_layer_equals_its_reference_in_float64(change, nodes):
    found, expected, (theirs, ours) = both(make_layer(**change), nodes=nodes)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.k, theirs.k, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.v, theirs.v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rotation", ["half", "interleaved"])
@pytest.mark.parametrize("rotary", [2, 4, 6])
def test_dimensions_beyond_a_partial_rotation_are_unchanged(rotary, rotation):
    found, expected, (theirs, ours) = both(make_layer(rotation=rotation), rotary=rotary)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.k, theirs.k, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 9), st.sampled_from([(1, 1), (2, 1), (6, 3)]),
    st.sampled_from(list(CHANGES)), st.integers(0, 99),
)  # fmt: skip
def test_layer_equals_its_reference_for_any_shape(batch, nodes, heads, change, seed):
    options = {**CHANGES[change], "heads": heads[0], "kv_heads": heads[1]}
    found, expected, _ = both(make_layer(seed, **options), batch=batch, nodes=nodes)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepacked_products_are_no_less_accurate_than_plain_ones(dtype):
    if not can_prepack(dtype):
        pytest.skip("torch has no such operators here")
    weights = LinearWeights(
        tuple(numbers(n, 40, seed=n, dtype=dtype, scale=0.2) for n in (24, 16)),
        tuple(numbers(n, seed=n + 1, dtype=dtype) for n in (24, 16)),
    )
    plain, ours = PlainProduct(weights), PrepackedProduct(weights)
    wide = PlainProduct(LinearWeights(*(tuple(x.double() for x in part) for part in weights)))
    x, other = numbers(7, 40, seed=1, dtype=dtype), numbers(7, 40, seed=2, dtype=dtype)
    calls = {
        "product": lambda p, to: p(to(x)),
        "plus": lambda p, to: p.plus(to(x), to(other)),
        "times": lambda p, to: p.times(to(x), to(other)),
        **{a: lambda p, to, a=a: p.activated(to(x), a) for a in POINTWISE},
    }
    with torch.inference_mode():
        for name, call in calls.items():
            exact = call(wide, lambda x: x.double())
            errors = [float((call(p, lambda x: x) - exact).norm()) for p in (ours, plain)]
            assert errors[0] <= 1.1 * errors[1] + 1e-6 * float(exact.norm()), name


def test_plain_products_share_their_weights():
    layer = make_layer(dtype=torch.float32)
    lean = CpuDecoderLayer(layer, PlainProduct)
    for ours, theirs in zip(lean.qkv.weights.weights, layer.qkv.weights, strict=True):
        assert ours.data_ptr() == theirs.data_ptr()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_reference_compiles_with_fullgraph(change):
    layer = make_layer(**change)
    hidden, (cos, sin) = numbers(1, 2, WIDTH, seed=3), angles_of(1, 2, HEAD, torch.float64)

    def attend(q, k, v):
        return q + v.repeat_interleave(layer.heads // layer.kv_heads, 2)

    def run(hidden, cos, sin):
        return decoder_layer_reference(hidden, layer, cos, sin, attend)

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(hidden, cos, sin), run(hidden, cos, sin))
