"""Heads with hidden states, and their expected results."""

import torch
import torch.nn.functional as F

from specdec_kernels import HeadWeights, lm_head_topk
from specdec_kernels.lm_head.reference import finish_logits
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_head(rows, size, vocabulary, dtype, seed, device, integers=None):
    """Hidden states and a head; small integers make every sum exact, and ties plenty."""
    generator = torch.Generator().manual_seed(seed)
    if integers is None:
        hidden = torch.randn(rows, size, generator=generator)
        weight = torch.randn(vocabulary, size, generator=generator) * 2 * size**-0.5
    else:
        hidden, weight = (
            torch.randint(-integers, integers + 1, (n, size), generator=generator).float()
            for n in (rows, vocabulary)
        )
    return hidden.to(device, dtype), weight.to(device, dtype)


def run(hidden, weight, k, **options):
    with poisoned_empty():
        return lm_head_topk(hidden, HeadWeights(weight, **options), k, impl="triton")


def all_log_probs(hidden, head):
    """The reference's log-probabilities of all tokens, and those of float64 throughout."""
    weight, bias = head.weight, head.bias
    exact = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    exact = finish_logits(exact, head._replace(round_to=None))
    if head.round_to is None:
        hidden, weight, bias = (None if x is None else x.float() for x in (hidden, weight, bias))
    logits = finish_logits(F.linear(hidden, weight, bias), head).float()
    logsumexp, exact_logsumexp = logits.logsumexp(-1), exact.logsumexp(-1)
    return (
        (logits - logsumexp[:, None], logsumexp),
        (exact - exact_logsumexp[:, None], exact_logsumexp),
    )


def assert_as_good(hidden, weight, k, **options):
    """Values as close to float64 as the reference's; ids equal, but for a few near-ties within two roundings."""
    head = HeadWeights(weight, **options)
    found = run(hidden, weight, k, **options)
    expected = lm_head_topk(hidden, head, k, impl="reference")
    (log_probs, logsumexp), (exact, exact_logsumexp) = all_log_probs(hidden, head)
    at = found.ids
    assert_no_worse(found.log_probs, log_probs.gather(1, at), exact.gather(1, at))
    assert_no_worse(found.logsumexp, logsumexp, exact_logsumexp)
    differ = found.ids != expected.ids
    assert differ.float().mean() <= 0.02, f"{int(differ.sum())} of {differ.numel()} ids differ"
    ours, theirs = (exact.gather(1, ids)[differ] for ids in (found.ids, expected.ids))
    rounding = torch.finfo(options.get("round_to") or torch.float32).eps
    scale = (exact + exact_logsumexp[:, None]).abs().amax()
    assert ((ours - theirs).abs() <= 2 * rounding * scale).all()
    assert all(len(set(row)) == k for row in found.ids.tolist())


def extreme_logits(size):
    """Rows that no model should give, by name; with zeros for weights they are a bias."""
    inf, nan = torch.inf, torch.nan
    some = torch.randn(size, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([size // 3, size // 2, size - 1])
    rows = {name: some.clone() for name in ("one-nan", "nans", "one-inf", "infs", "both")}
    rows["one-nan"][places[1]] = nan
    rows["nans"][places] = nan
    rows["one-inf"][places[1]] = inf
    rows["infs"][places] = inf
    rows["both"][places] = torch.tensor([inf, nan, inf])
    rows["nothing"] = torch.full((size,), -inf)
    rows["nothing-but-one"] = rows["nothing"].clone().index_fill(0, places[1:2], 3.0)
    rows["nothing-and-nan"] = rows["nothing"].clone().index_fill(0, places[1:2], nan)
    rows["nothing-and-inf"] = rows["nothing"].clone().index_fill(0, places[1:2], inf)
    rows["nan-alone"] = torch.full((size,), nan)
    return rows
