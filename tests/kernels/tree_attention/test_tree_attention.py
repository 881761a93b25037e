import math

import pytest
import torch

from specdec_kernels import ancestor_matrix, pack_bits, tree_attention

SCALE = 0.3


def random_tree(batch, nodes, generator):
    parents = torch.full((batch, nodes), -1)
    for row in range(batch):
        for node in range(1, nodes):
            parents[row, node] = torch.randint(0, node, (), generator=generator)
    depth = ancestor_matrix(parents).sum(-1) - 1
    return parents, depth, pack_bits(ancestor_matrix(parents))


def replay_path(q, k, v, prefix, path, positions, window, softcap):
    """Attention of the last node of one path alone, key by key in float64: the oracle."""
    slots = list(range(prefix)) + [prefix + node for node in path]
    at = list(range(prefix)) + [positions[node] for node in path]
    seen = [s for s, p in zip(slots, at, strict=True) if window is None or p > at[-1] - window]
    heads, group = q.shape[0], q.shape[0] // k.shape[0]
    out = []
    for head in range(heads):
        keys, values = k[head // group, seen].double(), v[head // group, seen].double()
        scores = keys @ q[head].double() * SCALE
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out.append(scores.softmax(0) @ values)
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 1, 5], ids="window-{}".format)
@pytest.mark.parametrize("softcap", [None, 2.0], ids="softcap-{}".format)
@pytest.mark.parametrize(
    ("batch", "nodes", "heads", "kv_heads", "size"),
    [(1, 1, 9, 3, 64), (1, 13, 9, 3, 64), (3, 7, 4, 4, 16), (2, 65, 7, 1, 8), (4, 1, 8, 2, 32)],
)
def test_node_output_equals_its_path_run_alone(
    batch, nodes, heads, kv_heads, size, softcap, window
):
    generator = torch.Generator().manual_seed(nodes)
    prefix = torch.randint(0, 12, (batch,), generator=generator)
    prefix[0] = 0
    rows = torch.randperm(batch + 2, generator=generator)[:batch]
    columns = int(prefix.max()) + nodes + 3
    parents, depth, ancestors = random_tree(batch, nodes, generator)
    q = torch.randn(batch, heads, nodes, size, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch + 2, kv_heads, columns, size, generator=generator).double()

    out = tree_attention(
        q.transpose(1, 2),  # as the library hands it over: not contiguous
        k,
        v,
        prefix_lens=prefix,
        ancestors=ancestors,
        depth=depth,
        cache_rows=rows,
        scale=SCALE,
        softcap=softcap,
        window=window,
    )
    assert out.shape == (batch, nodes, heads, size)
    for b in range(batch):
        positions = (prefix[b] + depth[b]).tolist()
        for node in range(nodes):
            path = [node]
            while parents[b, path[0]] >= 0:
                path.insert(0, int(parents[b, path[0]]))
            row = int(rows[b])
            expected = replay_path(
                q[b, :, node], k[row], v[row], int(prefix[b]), path, positions, window, softcap
            )
            torch.testing.assert_close(out[b, node], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_within_rounding(dtype):
    generator = torch.Generator().manual_seed(1)
    _, depth, ancestors = random_tree(2, 9, generator)
    prefix, columns, size = torch.tensor([40, 17]), 52, 32
    q64 = torch.randn(2, 9, 6, size, generator=generator, dtype=torch.float64)
    k64, v64 = torch.randn(2, 2, 2, columns, size, generator=generator, dtype=torch.float64)
    tree = {"prefix_lens": prefix, "ancestors": ancestors, "depth": depth}
    q, k, v = (x.to(dtype) for x in (q64, k64, v64))
    truth = tree_attention(q.double(), k.double(), v.double(), **tree)
    ours = (tree_attention(q, k, v, **tree).double() - truth).abs().max()
    if dtype == torch.float32:  # the bound on summing D products, then S terms
        budget = torch.finfo(dtype).eps * (size + columns) * v64.abs().max()
    else:  # accumulated in float32: twice what rounding q, k, v did to the exact answer
        budget = 2 * (tree_attention(q64, k64, v64, **tree) - truth).abs().max()
    assert ours <= budget


def test_garbage_in_unused_slots_does_not_change_the_result():
    generator = torch.Generator().manual_seed(2)
    _, depth, ancestors = random_tree(2, 5, generator)
    prefix = torch.tensor([3, 8])
    q = torch.randn(2, 5, 4, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 20, 16, generator=generator)
    tree = {"prefix_lens": prefix, "ancestors": ancestors, "depth": depth}
    clean = tree_attention(q, k, v, **tree)
    for row, length in enumerate(prefix.tolist()):
        k[row, :, length + 5 :], v[row, :, length + 5 :] = 1e30, -1e30
    assert torch.equal(tree_attention(q, k, v, **tree), clean)


def test_float64_cache_is_rounded_only_at_the_end():
    generator = torch.Generator().manual_seed(3)
    _, depth, ancestors = random_tree(1, 4, generator)
    q = torch.randn(1, 4, 6, 16, generator=generator).bfloat16()
    k, v = torch.randn(2, 1, 2, 30, 16, generator=generator, dtype=torch.float64)
    tree = {"prefix_lens": torch.tensor([26]), "ancestors": ancestors, "depth": depth}
    out = tree_attention(q, k, v, **tree)
    assert torch.equal(out, tree_attention(q.double(), k, v, **tree).bfloat16())


def test_default_scale_is_one_over_the_root_of_the_head_size():
    generator = torch.Generator().manual_seed(4)
    _, depth, ancestors = random_tree(1, 3, generator)
    q = torch.randn(1, 3, 2, 16, generator=generator)
    k, v = torch.randn(2, 1, 2, 9, 16, generator=generator)
    tree = {"prefix_lens": torch.tensor([6]), "ancestors": ancestors, "depth": depth}
    assert torch.equal(
        tree_attention(q, k, v, **tree), tree_attention(q, k, v, scale=1 / math.sqrt(16), **tree)
    )


def test_error_names_the_argument_of_wrong_shape():
    depth = torch.zeros(1, 2, dtype=torch.int64)
    tree = {"prefix_lens": torch.tensor([1]), "ancestors": torch.ones(1, 2, 1, dtype=torch.int64)}
    q, k = torch.zeros(1, 2, 6, 8), torch.zeros(1, 4, 5, 8)
    with pytest.raises(ValueError, match="G dividing 6"):
        tree_attention(q, k, k, depth=depth, **tree)
    k = torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match=r"depth: expected shape \[1, 2\]"):
        tree_attention(q, k, k, depth=depth[:, :1], **tree)
    with pytest.raises(ValueError, match=r"mask: expected shape \[1, 6, 5\]"):
        tree_attention(q, k, k, depth=depth, mask=torch.zeros(1, 2, 5), **tree)
