"""Inputs of tree attention, and their float64 results."""

import dataclasses

import torch

from specdec_kernels import ancestor_matrix, pack_bits
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty
from specdec_kernels.testing.trees import depths, make_parents
from specdec_kernels.tree_attention import tree_attention_lse

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclasses.dataclass
class Problem:
    """One call: queries, caches without NaN, and the arguments that say which slots count."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tree: dict
    options: dict

    def run(self, impl, function=tree_attention_lse, dtype=None, **options):
        q, k, v = (x if dtype is None else x.to(dtype) for x in (self.q, self.k, self.v))
        return function(q, k, v, **self.tree, **{**self.options, **options}, impl=impl)

    def poison(self):
        """Fill every slot that nobody may read with NaN."""
        used = torch.zeros(self.k.shape[0], self.k.shape[2], dtype=torch.bool)
        nodes, tree = self.q.shape[1], self.tree
        for b, prefix in enumerate(tree["prefix_lens"].tolist()):
            shared = 0
            if "shared_rows" in tree and tree["shared_rows"][b] >= 0:
                shared = int(tree["shared_lens"][b])
                used[tree["shared_rows"][b], :shared] = True
            used[tree["cache_rows"][b], shared : prefix + nodes] = True
        k, v = self.k.clone(), self.v.clone()
        for cache in (k, v):
            cache.transpose(1, 2)[~used.to(cache.device)] = torch.nan
        return dataclasses.replace(self, k=k, v=v)


def make_problem(
    device, kind="random", prefixes=(37, 70), nodes=13, heads=(4, 2), size=64, dtype=FP32, seed=0,
    parents=None, **options,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    batch, slots = len(prefixes), max(prefixes) + nodes + 3
    if parents is None:
        parents = torch.stack([make_parents(kind, nodes, generator) for _ in prefixes])
    q = torch.randn(batch, heads[0], nodes, size, generator=generator).to(device, dtype)
    k, v = torch.randn(2, batch + 1, heads[1], slots, size, generator=generator).to(device, dtype)
    tree = {
        "prefix_lens": torch.tensor(prefixes),
        "ancestors": pack_bits(ancestor_matrix(parents)),
        "depth": depths(parents),
        "cache_rows": torch.randperm(batch + 1, generator=generator)[:batch],
    }
    tree = {name: x.to(device) for name, x in tree.items()}
    return Problem(q.transpose(1, 2), k, v, tree, options)


def assert_right(problem, **options):
    """No worse than the reference, and nothing read that is not there or left unwritten."""
    with poisoned_empty():
        found = problem.poison().run("triton", **options)
    reference = problem.run("reference")
    exact = problem.run("reference", dtype=torch.float64)
    for x, like, truth in zip(found, reference, exact, strict=True):
        assert x.is_contiguous()
        assert_no_worse(x, like, truth)
    return found


def with_shared(problem, shared_rows, shared_lens):
    device = problem.q.device
    tree = {
        **problem.tree,
        "shared_rows": torch.tensor(shared_rows, device=device),
        "shared_lens": torch.tensor(shared_lens, device=device),
    }
    return dataclasses.replace(problem, tree=tree)
