"""What each op's results are held against: the reference's, in float64 where numbers are rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from bench.ops.cases import Call
from early_exit_steps import assert_kernel_is_no_worse
from pick_problems import assert_same_picks
from specdec_kernels.lm_head import HeadWeights
from specdec_kernels.lm_head.reference import finish_logits
from specdec_kernels.lm_head.weights import as_head
from specdec_kernels.testing.accuracy import assert_no_worse

Again = Callable[..., list[Tensor]]


def assert_right(call: Call, again: Again) -> None:
    """Raise AssertionError unless a call gives what it should.

    Args:
        call: of a public function.
        again: from `call.repeatable()`.
    """
    again(lambda: None)  # what earlier calls wrote is no input
    JUDGES.get(call.name, _all_results)(call, again)


def _all_results(call: Call, again: Again) -> None:
    """Compare numbers by their errors, at most twice the reference's own; all else must be equal."""
    wide = in_float64(call)
    found, like = ([x.clone() for x in again(way)] for way in (call.run, _reference(call)))
    exact = wide.repeatable()(_reference(wide))
    for x, y, truth in zip(found, like, exact, strict=True):
        if x.is_floating_point():
            assert_no_worse(x, y, truth.double())
        else:
            assert torch.equal(x, y), f"{int((x != y).sum())} of {x.numel()} differ"


def in_float64(call: Call) -> Call:
    """Widen all numbers, and round nothing."""

    def wide(x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return None
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    return call._replace(arguments=tree_map(wide, call.arguments))


def _reference(call: Call) -> Callable[[], Any]:
    return lambda: call.run("reference")


def _attention(call: Call, again: Again) -> None:
    """Compare row by row, as float64 takes four times the cache."""
    (found,), (like,) = ([x.clone() for x in again(way)] for way in (call.run, _reference(call)))
    given = call.arguments
    rows = {name: given.get(name) for name in ("prefix_lens", "ancestors", "depth", "cache_rows")}
    rows["cache_rows"] = torch.arange(len(found), device=found.device) if rows["cache_rows"] is None else rows["cache_rows"]  # fmt: skip
    rows |= {name: given[name] for name in ("shared_rows", "shared_lens") if name in given}
    exact = []
    for row in range(len(found)):
        one = {"q": given["q"][row : row + 1], **{k: v[row : row + 1] for k, v in rows.items()}}
        exact.append(_attend(in_float64(_alone(call, one))))
    assert_no_worse(found, like, torch.cat(exact))


def _alone(call: Call, one: dict[str, Any]) -> Call:
    """Leave only the cache rows that one row reads."""
    shared = one.get("shared_rows")
    used = torch.cat([one["cache_rows"], *([] if shared is None else [shared])])
    caches = {name: call.arguments[name][used] for name in ("k_cache", "v_cache")}
    places = {"cache_rows": torch.zeros_like(one["cache_rows"])}
    if shared is not None:
        places["shared_rows"] = torch.ones_like(shared)
    return call._replace(arguments={**call.arguments, **caches, **one, **places})


def _attend(call: Call) -> Tensor:
    out: Tensor = call.run("reference")
    return out


def _all_log_probs(hidden: Tensor, head: HeadWeights | Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the exact log-probabilities of all tokens, their sums, and how far off the reference's are at most."""
    head = as_head(head, {})
    weight = head.weight
    rounded = head.round_to is not None
    product = F.linear(hidden, weight) if rounded else F.linear(hidden.float(), weight.float())
    exact = F.linear(hidden.double(), weight.double())
    exact = finish_logits(exact, head._replace(round_to=None))
    like = finish_logits(product, head).float()
    rounding = 4 * torch.finfo(torch.float32).eps * float(exact.abs().amax())
    total = exact.logsumexp(-1)
    worst = float((like - exact).abs().amax())
    return exact - total[..., None], total, 2 * worst + rounding


def _head(call: Call, again: Again) -> None:
    given = call.arguments
    exact, total, allowed = _all_log_probs(given["hidden"], given["head"])
    found = call.run()
    assert_within("ids", found.ids, exact.shape[-1])
    assert_near("log_probs", found.log_probs, exact.gather(-1, found.ids), allowed)
    assert_near("logsumexp", found.logsumexp, total, allowed)
    assert_best(found.ids, exact, allowed)


def _beams(call: Call, again: Again) -> None:
    given = call.arguments
    exact, _, allowed = _all_log_probs(given["hidden"], given["head"])
    totals = (given["scores"].double()[..., None] + exact).flatten(1)  # [B, W * V]
    found = call.run()
    assert_within("parents", found.parents, exact.shape[1])
    assert_within("tokens", found.tokens, exact.shape[2])
    at = found.parents * exact.shape[-1] + found.tokens
    assert_near("scores", found.scores, totals.gather(1, at), allowed)
    assert_best(at, totals, allowed)


def assert_within(name: str, ids: Tensor, size: int) -> None:
    """Look before a wrong index ends the process."""
    assert bool(((ids >= 0) & (ids < size)).all()), f"{name}: expected 0 to {size - 1}, got others"


def assert_near(name: str, found: Tensor, exact: Tensor, allowed: float) -> None:
    error = float((found.double() - exact).abs().amax())
    assert error <= allowed, f"{name}: expected an error of at most {allowed:.3g}, got {error:.3g}"


def assert_best(ids: Tensor, exact: Tensor, allowed: float) -> None:
    """Hold the j-th best against the truly j-th best: two values decide which one comes first."""
    best = exact.topk(ids.shape[-1], -1).values
    behind = float((best - exact.gather(-1, ids)).abs().amax())
    assert behind <= 2 * allowed, (
        f"ids: expected at most {2 * allowed:.3g} behind, got {behind:.3g}"
    )
    ordered = ids.sort(-1).values
    assert not (ordered[..., 1:] == ordered[..., :-1]).any(), "ids: one came twice"


def _early_exit(call: Call, again: Again) -> None:
    given = call.arguments
    rows = torch.arange(len(given["hidden"]), device=given["hidden"].device)
    assert_kernel_is_no_worse({"cache_rows": rows, "appends": None, **given})


def _pick(call: Call, again: Again) -> None:
    assert_same_picks(**call.arguments)


JUDGES: dict[str, Callable[[Call, Again], None]] = {
    "tree_attention": _attention,
    "lm_head_topk": _head,
    "lm_head_beams": _beams,
    "early_exit_step": _early_exit,
    "pick_tokens": _pick,
}
