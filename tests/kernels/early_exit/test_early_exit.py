import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from specdec_kernels import EarlyExitAdapter, pack_bits, tree_attention

SHAPES = {"E24-H4-G2-D6": (24, 4, 2, 6), "E32-H4-G4-D8": (32, 4, 4, 8), "E21-H3-G1-D10": (21, 3, 1, 10)}  # fmt: skip
THETA = 500.0


def adapter_of(shape, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    adapter = EarlyExitAdapter(*shape, rms_norm_eps=1e-6, rope_theta=THETA)
    for norm in (adapter.input_norm, adapter.output_norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return adapter.to(dtype).requires_grad_(False)


def stepwise(adapter, hidden, lengths):
    """Run row b's first `lengths[b]` tokens one after another over one cache, all rows at once."""
    batch, total, _ = hidden.shape
    k_cache, v_cache = torch.zeros(
        2, batch, adapter.kv_heads, total, adapter.head_dim, dtype=hidden.dtype
    )
    out = torch.zeros_like(hidden)
    itself, depth = pack_bits(torch.ones(batch, 1, 1, dtype=torch.bool)), torch.zeros(batch, 1).long()  # fmt: skip
    for step in range(total):
        at = torch.tensor([min(step, length - 1) for length in lengths])
        now = hidden[torch.arange(batch), at][:, None]
        q, k, v = adapter.project(now, at[:, None])
        k_cache[torch.arange(batch), :, at] = k[:, :, 0]
        v_cache[torch.arange(batch), :, at] = v[:, :, 0]
        nodes = {"prefix_lens": at, "ancestors": itself, "depth": depth}
        y = adapter.finish(now, tree_attention(q, k_cache, v_cache, **nodes))
        out[torch.arange(batch), at] = y[:, 0]
    return out


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_sequence_equals_one_token_at_a_time(shape):
    adapter, lengths = adapter_of(shape), (9, 1, 5)
    hidden = torch.randn(3, 9, shape[0], dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    out = adapter.forward_sequence(hidden.masked_fill(~mask[..., None], torch.nan), mask)
    torch.testing.assert_close(
        out[mask], stepwise(adapter, hidden, lengths)[mask], rtol=1e-9, atol=1e-9
    )
    assert out.isfinite().all()
    unpadded = adapter.forward_sequence(hidden)
    torch.testing.assert_close(unpadded[mask], out[mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_adapter_equals_llama_attention_between_two_norms(shape):
    hidden_size, heads, kv_heads, head_dim = shape
    adapter = adapter_of(shape, torch.float32)
    config = LlamaConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        attn_implementation="sdpa",
    )
    attention, rotary = LlamaAttention(config, 0).eval(), LlamaRotaryEmbedding(config)
    norms = [LlamaRMSNorm(hidden_size, 1e-6) for _ in range(2)]
    attention.load_state_dict(
        {name: x for name, x in adapter.state_dict().items() if "proj" in name}
    )
    norms[0].load_state_dict(adapter.input_norm.state_dict())
    norms[1].load_state_dict(adapter.output_norm.state_dict())
    hidden = torch.randn(2, 11, hidden_size)
    with torch.no_grad():
        angles = rotary(hidden, torch.arange(11)[None])
        out, _ = attention(norms[0](hidden), angles, attention_mask=None)
        expected = norms[1](hidden + out)
        torch.testing.assert_close(adapter.forward_sequence(hidden), expected, rtol=1e-5, atol=1e-5)
        for adapted, own in zip((adapter.input_norm, adapter.output_norm), norms, strict=True):
            low = hidden.bfloat16()
            assert torch.equal(adapted.bfloat16()(low), own.bfloat16()(low))


def test_project_kv_equals_the_full_projection():
    adapter = adapter_of(SHAPES["E24-H4-G2-D6"])
    hidden, positions = torch.randn(2, 3, 24, dtype=torch.float64), torch.tensor([[0, 1, 2], [40, 41, 42]])  # fmt: skip
    q, k, v = adapter.project(hidden, positions)
    assert (q.shape, k.shape, v.shape) == ((2, 3, 4, 6), (2, 2, 3, 6), (2, 2, 3, 6))
    for alone, of_all in zip(adapter.project_kv(hidden, positions), (k, v), strict=True):
        assert torch.equal(alone, of_all)


def test_attention_scores_depend_only_on_relative_positions():
    adapter = adapter_of(SHAPES["E24-H4-G2-D6"])
    hidden = torch.randn(1, 6, 24, dtype=torch.float64)
    scores = []
    for start in (0, 1000):
        q, k, _ = adapter.project(hidden, torch.arange(start, start + 6)[None])
        scores.append(q.transpose(1, 2) @ k.repeat_interleave(2, 1).mT)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)  # angles are in float32


def test_gradients_reach_every_parameter():
    adapter = adapter_of(SHAPES["E24-H4-G2-D6"], torch.float32).requires_grad_(True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    out = adapter.forward_sequence(torch.randn(2, 3, 24), mask)
    out[mask].square().sum().backward()
    assert set(adapter.state_dict()) == {
        f"{name}.weight" for name in ("input_norm", "q_proj", "k_proj", "v_proj", "o_proj", "output_norm")
    }  # fmt: skip
    assert all(p.grad.isfinite().all() and p.grad.any() for p in adapter.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 4, 2, 6), "hidden_size: expected at least 1, got 0"),
        ((24, 0, 2, 6), "heads: expected at least 1, got 0"),
        ((24, 4, 3, 6), "kv_heads: expected a divisor of 4 heads, got 3"),
        ((24, 4, 2, 5), "head_dim: expected an even number from 2 on, got 5"),
    ],
)
def test_error_names_the_argument_of_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        EarlyExitAdapter(*shape)
