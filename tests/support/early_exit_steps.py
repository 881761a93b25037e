"""Steps of Kangaroo's adapter with all inputs, computed in float64 and by the op."""

import torch

from specdec_kernels import tree_attention
from specdec_kernels.early_exit import AdapterWeights, HeadWeights, early_exit_step
from specdec_kernels.early_exit.reference import functional_parts
from specdec_kernels.lm_head.reference import finish_logits
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WRITTEN = ("k_cache", "v_cache", "positions", "stopped", "tokens", "confidence")
# Size, query heads, K/V heads, size of a head.
SHAPES = {"E64-H4-G2-D16": (64, 4, 2, 16), "E63-H3-G1-D32": (63, 3, 1, 32), "E130-H2-G2-D80": (130, 2, 2, 80)}  # fmt: skip


def make_step(
    shape=SHAPES["E64-H4-G2-D16"],
    *,
    batch=3,
    slots=12,
    vocabulary=150,
    dtype=torch.float32,
    device="cpu",
    seed=0,
    positions=None,
    **head,
):
    """All arguments of `early_exit_step` by name, for rows of several lengths in a cache with more rows."""
    size, heads, kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, scale=1.0):
        numbers = torch.randn(sizes, generator=generator) * scale
        return numbers.to(device, dtype)

    def weight(*sizes):
        return normal(*sizes, scale=sizes[1] ** -0.5)

    wide, narrow = heads * head_dim, kv_heads * head_dim
    adapter = AdapterWeights(
        1 + normal(size, scale=0.2), weight(wide, size), weight(narrow, size),
        weight(narrow, size), weight(size, wide), 1 + normal(size, scale=0.2), 500.0, 1e-6,
    )  # fmt: skip
    kv = normal(2, batch + 2, kv_heads, slots, head_dim)
    prefix = torch.randint(0, slots, (batch,), generator=generator)
    return {
        "hidden": normal(batch, size),
        "k_cache": kv[0],
        "v_cache": kv[1],
        "adapter": adapter,
        "head": HeadWeights(3 * weight(vocabulary, size), round_to=dtype)._replace(**head),
        "prefix_lens": prefix.to(device),
        "positions": (prefix + 5 if positions is None else positions).to(device),
        "stopped": torch.zeros(batch, dtype=torch.bool, device=device),
        "tokens": torch.full((batch,), -1, device=device),
        "confidence": torch.full((batch,), -1.0, device=device),
        "eta": 0.1,
        "cache_rows": torch.randperm(batch + 2, generator=generator)[:batch].to(device),
        "appends": None,
    }


def run(step, impl, **changed):
    """Run on copies of what is written, and return those."""
    step = {**step, **changed}
    copies = {name: step[name].clone() for name in WRITTEN}
    with poisoned_empty():
        early_exit_step(**{**step, **copies}, impl=impl)
    return copies


def by_hand(step):
    """One row after another in float64: appended keys and values, logits."""
    adapter = AdapterWeights(*(x.double() for x in step["adapter"][:6]), *step["adapter"][6:])
    keys, values, logits = [], [], []
    for b, hidden in enumerate(step["hidden"].double()):
        row, prefix = int(step["cache_rows"][b]), int(step["prefix_lens"][b])
        k_cache, v_cache = (step[name][row, :, :prefix].double() for name in ("k_cache", "v_cache"))
        kv_heads, _, size = k_cache.shape
        turn = torch.polar(
            torch.ones(size // 2, dtype=torch.float64, device=hidden.device),
            float(step["positions"][b])
            / adapter.rope_theta
            ** (torch.arange(0, size, 2, dtype=torch.float64, device=hidden.device) / size),
        )

        def rotated(x, turn=turn, half=size // 2):
            pairs = torch.complex(x[:, :half].contiguous(), x[:, half:].contiguous()) * turn
            return torch.cat([pairs.real, pairs.imag], 1)

        def normed(x, weight):
            return weight * x / (x.square().mean() + adapter.norm_eps).sqrt()

        x = normed(hidden, adapter.input_norm)
        q, k, v = ((w @ x).view(-1, size) for w in (adapter.q_proj, adapter.k_proj, adapter.v_proj))
        q, k = rotated(q), rotated(k)
        all_k, all_v = (
            torch.cat([cache, new[:, None]], 1) for cache, new in ((k_cache, k), (v_cache, v))
        )
        group = len(q) // kv_heads
        heads = [
            torch.softmax(all_k[h // group] @ one * size**-0.5, 0) @ all_v[h // group]
            for h, one in enumerate(q)
        ]
        y = normed(hidden + adapter.o_proj @ torch.cat(heads), adapter.output_norm)
        keys.append(k)
        values.append(v)
        logits.append(step["head"].weight.double() @ y)
    return torch.stack(keys), torch.stack(values), finished(step["head"], torch.stack(logits))


def finished(head, logits):
    if head.bias is not None:
        logits = logits + head.bias
    rounding = None if logits.dtype == torch.float64 else head.round_to
    return finish_logits(logits, head._replace(round_to=rounding))


def logits_error(step, exact):
    """How far the reference's own logits are from the truth, at most."""
    prefix, rows = step["prefix_lens"], step["cache_rows"]
    project, finish, _ = functional_parts(step["adapter"], step["head"], step["k_cache"].shape[-1])
    hidden = step["hidden"][:, None]
    q, k, v = project(hidden, step["positions"][:, None])
    caches = [step["k_cache"].clone(), step["v_cache"].clone()]
    for cache, new in zip(caches, (k, v), strict=True):
        cache[rows, :, prefix] = new[:, :, 0]
    one = torch.ones_like(prefix)[:, None, None]
    attended = tree_attention(
        q, *caches, prefix_lens=prefix, ancestors=one, depth=one[..., 0] - 1, cache_rows=rows,
        impl="reference",
    )  # fmt: skip
    logits = finish(hidden, attended)[:, 0] @ step["head"].weight.T
    return (finished(step["head"], logits).double() - exact).abs().amax()


def appended(step, found):
    """The slots that the step's tokens belong in."""
    at = (step["cache_rows"], slice(None), step["prefix_lens"])
    return found["k_cache"][at], found["v_cache"][at]


def assert_kernel_is_no_worse(step):
    keys, values, logits = by_hand(step)
    found, reference = run(step, "triton"), run(step, "reference")
    for x, y, z in zip(
        appended(step, found), appended(step, reference), (keys, values), strict=True
    ):
        assert_no_worse(x, y, z)
    # With every logit at most twice as wrong as the reference's worst one, two of them decide a choice, and one of them
    # and all of them a probability.
    allowed = 4 * logits_error(step, logits) + 8 * torch.finfo(torch.float32).eps
    ids = found["tokens"] if step["head"].id_map is None else (found["tokens"] - 1) // 3
    chosen = logits.gather(1, ids[:, None])[:, 0]
    assert (logits.amax(1) - chosen <= allowed).all()
    exact = chosen - logits.logsumexp(1)
    assert ((found["confidence"].double().log() - exact).abs() <= allowed).all()
    assert torch.equal(found["positions"], step["positions"] + 1)
    assert torch.equal(found["stopped"], found["confidence"] < step["eta"])
    # Nothing else of the cache has changed.
    for name in ("k_cache", "v_cache"):
        found[name][step["cache_rows"], :, step["prefix_lens"]] = 0
        before = step[name].clone()
        before[step["cache_rows"], :, step["prefix_lens"]] = 0
        assert torch.equal(found[name], before)
