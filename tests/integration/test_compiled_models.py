"""Tree attention inside the library's models, compiled whole: the op is opaque, the reference is traced."""

import pytest
import torch
from transformers import AttentionInterface

from specdec_kernels import TreeAttention, ancestor_matrix, pack_bits
from specdec_kernels.testing.trees import depths, make_parents
from tiny import VOCABULARY, tiny_model


@pytest.fixture(params=["reference", "triton"])
def attention(request, kernel_device):
    """A registered attention function that holds the module, for a tree without a prefix."""
    attend = TreeAttention(impl=request.param)

    def forward(module, query, key, value, attention_mask, *, ancestors, depth, scaling, **kwargs):
        out = attend(
            query.transpose(1, 2), key, value,
            prefix_lens=torch.zeros_like(depth[:, 0]), ancestors=ancestors, depth=depth,
        )  # fmt: skip
        return out, None

    name = f"tree_{request.param}"
    AttentionInterface.register(name, forward)
    return name


def tree(nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    parents = make_parents("random", nodes, generator)[None]
    tokens = torch.randint(3, VOCABULARY, (1, nodes), generator=generator)
    return tokens, parents, depths(parents), pack_bits(ancestor_matrix(parents))


def path_to(parents, node):
    path = [node]
    while (node := int(parents[0, node])) >= 0:
        path.insert(0, node)
    return path


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("family", ["llama-16", "qwen3-16"])
def test_compiled_model_with_tree_attention_equals_each_path_run_alone(
    family, dynamic, attention, kernel_device
):
    model = tiny_model(family, dtype=torch.float32).to(kernel_device)

    def run(tokens, depth, ancestors):
        return model(
            tokens, position_ids=depth, ancestors=ancestors, depth=depth, use_cache=False
        ).logits

    torch._dynamo.reset()
    with torch.no_grad():
        texts = [(tree(nodes, nodes), []) for nodes in ((9, 13) if dynamic else (9,))]
        for (tokens, parents, _, _), expected in texts:
            for node in range(tokens.shape[1]):
                path = path_to(parents, node)
                expected.append(
                    model(tokens[:, path].to(kernel_device), use_cache=False).logits[0, -1]
                )
        before = model.config._attn_implementation
        model.set_attn_implementation(attention)
        try:
            compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
            for (tokens, _, depth, ancestors), expected in texts:
                logits = compiled(*(x.to(kernel_device) for x in (tokens, depth, ancestors)))
                torch.testing.assert_close(logits[0], torch.stack(expected), rtol=1e-4, atol=1e-4)
        finally:
            model.set_attn_implementation(before)
