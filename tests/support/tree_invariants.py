"""Invariants of every verified tree."""

import torch

from specdec_kernels import ancestor_matrix, pack_bits


def check_tree(tree):
    """Assert every invariant of a tree."""
    nodes = torch.arange(tree.tokens.shape[1], device=tree.tokens.device)
    real = nodes < tree.sizes[:, None]
    inner = real & (nodes > 0)
    parent = tree.parents.clamp(min=0)
    assert (tree.sizes >= 1).all()
    assert (tree.parents[~inner] == -1).all()
    assert ((tree.parents >= 0) & (tree.parents < nodes))[inner].all(), "parent after child"
    assert (tree.depth == tree.depth.gather(1, parent) + 1)[inner].all()
    assert (tree.depth[~inner] == 0).all()
    assert torch.equal(tree.ancestors, pack_bits(ancestor_matrix(tree.parents)))
    twins = (parent[:, :, None] == parent[:, None]) & (
        tree.tokens[:, :, None] == tree.tokens[:, None]
    )
    twins &= inner[:, :, None] & inner[:, None] & (nodes[:, None] != nodes)
    assert not twins.any(), "two children of one node share a token"
