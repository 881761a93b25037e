"""Side nodes get the model's own logits and leave nothing in the cache."""

import pytest
import torch

from specdec.model.cache import Rows
from specdec.model.passed import SideNodes, pass_nodes
from specdec.model.target import Target
from specdec.tree import Accepted, TokenTree
from specdec_kernels import ancestor_matrix, pack_bits
from tiny import VOCABULARY, tiny_model

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2"]
# Two paths behind the root: 0 1 and 2 3, of which 3 sees 2 alone.
SEES = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]).bool()
DEPTH = torch.tensor([1, 2, 1, 2])


def tree_of(tokens, parents):
    """Two rows with one shape."""
    tokens, parents = torch.tensor(tokens), torch.tensor([parents] * len(tokens))
    ancestors = ancestor_matrix(parents)
    return TokenTree(
        tokens=tokens,
        parents=parents,
        depth=ancestors.sum(-1) - 1,
        ancestors=pack_bits(ancestors),
        sizes=torch.full((len(tokens),), tokens.shape[1]),
        scores=torch.zeros(tokens.shape),
        source=torch.zeros_like(tokens),
    )


def prefilled(target, texts):
    cache = target.new_cache(rows=len(texts), capacity=40, tree_capacity=90)
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    target.prefill(ids, [len(t) for t in texts], cache)
    return cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nodes", [1, 4, 64])
@torch.inference_mode()
def test_side_nodes_get_the_models_own_logits_and_change_no_node(family, nodes):
    target = Target(tiny_model(family))
    texts = [[3, 1, 4, 1, 5, 9], [2, 7, 1]]
    parents = [-1, *([0, 0, 1] * 21)][:nodes]
    tokens = torch.randint(VOCABULARY, (2, nodes), generator=torch.Generator().manual_seed(nodes))
    tree = tree_of(tokens.tolist(), parents)
    side_tokens = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
    side = SideNodes(side_tokens, DEPTH.expand(2, -1), SEES, wanted=3)
    rows = Rows.first(2, target.device)

    alone = target.verify(tree, prefilled(target, texts), rows)
    beside = target.verify(tree, prefilled(target, texts), rows, None, side)

    torch.testing.assert_close(beside.logits, alone.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(beside.hidden, alone.hidden, rtol=1e-9, atol=1e-9)
    assert alone.side_logits is None
    assert beside.side_logits.shape == (2, 3, VOCABULARY)
    for row, text in enumerate(texts):
        for at, path in enumerate([[0, 1], [2], [2, 3]]):
            ids = [*text, int(tokens[row, 0]), *side_tokens[row, path].tolist()]
            logits = target.model(torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(beside.side_logits[row, at], logits, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_side_nodes_never_enter_the_cache():
    target = Target(tiny_model("llama"))
    rows = Rows.first(1, target.device)
    tree = TokenTree.chain(torch.tensor([[5, 6]]))
    side = SideNodes(torch.tensor([[11, 12, 13, 14]]), DEPTH[None], SEES, wanted=1)
    accepted = Accepted(torch.tensor([[0, 1]]), torch.tensor([1]), torch.tensor([7]))
    kept = []
    for beside in (None, side):
        cache = prefilled(target, [[3, 1, 4]])
        target.verify(tree, cache, rows, None, beside)
        cache.commit(accepted, rows)
        assert cache.lengths.tolist() == [5]
        kept.append(cache.kv[..., :5, :])
    torch.testing.assert_close(*kept, rtol=1e-9, atol=1e-9)


def test_side_node_ancestors_are_the_root_and_visible_side_nodes():
    tree = tree_of([[5, 6, 7]], [-1, 0, 0])
    side = SideNodes(torch.zeros(1, 4, dtype=torch.int64), DEPTH[None], SEES, wanted=1)
    nodes = pass_nodes(tree, side)
    assert nodes.tokens.shape == nodes.depth.shape == (1, 7)
    expected = [0b1, 0b11, 0b101, 0b1001, 0b11001, 0b100001, 0b1100001]
    assert nodes.ancestors[0, :, 0].tolist() == expected
