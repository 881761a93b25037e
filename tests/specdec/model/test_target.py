"""The target: a node's logits equal the model's own logits after the node's path."""

import copy
from itertools import pairwise

import pytest
import torch

from specdec.decode import accept
from specdec.load import load_target
from specdec.model.attention import ATTENTION
from specdec.model.cache import Rows
from specdec.model.certificate import certify, certify_exact, own_logits
from specdec.model.parts import DecoderParts
from specdec.model.target import Target
from specdec.tree import TokenTree
from specdec_kernels import pack_tree
from tiny import FAMILIES, POSITIONS, VOCABULARY, random_prompt, tiny_model

CPU = torch.device("cpu")


def random_tree(batch, count, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(high, shape):
        return torch.randint(0, high, shape, generator=generator)

    parents = torch.stack([draw(i + 1, (batch,)) - 1 for i in range(count)], 1)
    tree = pack_tree(
        draw(VOCABULARY, (batch,)),
        draw(VOCABULARY, (batch, count)),
        parents,
        torch.zeros(batch, count),
        capacity=count + 1,
        max_depth=count,
    )
    return TokenTree.from_packed(tree)


def path_to(tree, row, node):
    path = [node]
    while tree.parents[row, path[0]] >= 0:
        path.insert(0, int(tree.parents[row, path[0]]))
    return path


def prefilled(target, prompts, tree_capacity):
    longest = max(map(len, prompts))
    ids = torch.tensor([p + [5] * (longest - len(p)) for p in prompts])
    cache = target.new_cache(rows=len(prompts), capacity=longest + 70, tree_capacity=tree_capacity)
    return target.prefill(ids, [len(p) for p in prompts], cache), cache


@torch.inference_mode()
@pytest.mark.parametrize("count", [0, 5, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_verification_equals_replaying_each_path(family, count):
    model = tiny_model(family)
    target = Target(model)
    # The library runs Gemma 2 with its eager attention, whose softmax is in float32.
    near = {"rtol": 1e-5, "atol": 1e-5} if family == "gemma2" else {"rtol": 1e-9, "atol": 1e-9}
    prompts = [random_prompt(length, seed=length) for length in (1, 9, 23)]
    first, cache = prefilled(target, prompts, count + 1)
    tree = (
        random_tree(3, count, seed=count)
        if count
        else TokenTree.chain(torch.tensor([[3], [4], [5]]))
    )
    verified = target.verify(tree, cache, Rows.first(3, CPU))
    for row, prompt in enumerate(prompts):
        own = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(first.logits[row], own, **near)
        for node in range(int(tree.sizes[row])):
            text = prompt + tree.tokens[row, path_to(tree, row, node)].tolist()
            own = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(verified.logits[row, node], own, **near)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("seed", range(5))
def test_commit_equals_recomputing_the_prefix(family, seed):
    target = Target(tiny_model(family))
    prompts = [random_prompt(length, seed=length) for length in (4, 11, 2)]
    _, cache = prefilled(target, prompts, 13)
    rows = Rows.first(3, CPU)
    texts = [list(p) for p in prompts]
    for turn in range(3):
        tree = random_tree(3, 12, seed=10 * seed + turn)
        verified = target.verify(tree, cache, rows)
        assert verified.logits.isfinite().all()
        # Agree with one random path per row.
        generator = torch.Generator().manual_seed(seed)
        picked = torch.full(tree.tokens.shape, VOCABULARY)
        for row in range(3):
            leaf = int(torch.randint(0, int(tree.sizes[row]), (), generator=generator))
            path = path_to(tree, row, leaf)
            for parent, child in pairwise(path):
                picked[row, parent] = tree.tokens[row, child]
            texts[row] += tree.tokens[row, path].tolist()
        cache.commit(accept(tree, picked), rows)
        cache.host_lengths = cache.lengths.tolist()
        assert cache.host_lengths == [len(text) for text in texts]
    for row, text in enumerate(texts):
        _, fresh = prefilled(target, [text], 13)
        kept = cache.kv[:, :, row, :, : len(text)]
        torch.testing.assert_close(kept, fresh.kv[:, :, 0, :, : len(text)], rtol=1e-9, atol=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_running_layers_in_two_parts_equals_one_pass(family):
    target = Target(tiny_model(family))
    _, cache = prefilled(target, [random_prompt(6, 1), random_prompt(3, 2)], 8)
    tree, rows = random_tree(2, 7, seed=4), Rows.first(2, CPU)
    whole = target.verify(tree, cache, rows).logits
    for exit_layer in (1, 2):
        cache.open(tree.ancestors, tree.depth, rows)
        shallow = target.run_layers(target.embed(tree.tokens), cache, 0, exit_layer)
        deep = target.run_layers(shallow, cache, exit_layer)
        assert torch.equal(target.head(deep).logits, whole)


@torch.inference_mode()
def test_prefill_in_chunks_equals_prefill_at_once(monkeypatch):
    target = Target(tiny_model("mistral"))
    prompts = [random_prompt(length, seed=length) for length in (5, 40, 17)]
    whole, cache = prefilled(target, prompts, 1)
    monkeypatch.setattr("specdec.model.target.PREFILL_CHUNK", 8)
    chunked, chunked_cache = prefilled(target, prompts, 1)
    torch.testing.assert_close(chunked.logits, whole.logits, rtol=1e-9, atol=1e-9)
    assert chunked_cache.host_lengths == cache.host_lengths == [5, 40, 17]


@torch.inference_mode()
def test_garbage_in_unused_slots_does_not_change_the_result():
    target = Target(tiny_model("gemma3"))
    prompts = [random_prompt(6, 1), random_prompt(14, 2)]
    _, cache = prefilled(target, prompts, 8)
    tree, rows = random_tree(2, 7, seed=5), Rows.first(2, CPU)
    clean = target.verify(tree, cache, rows).logits
    for row, prompt in enumerate(prompts):
        cache.kv[:, 0, row, :, len(prompt) :] = 1e18
        cache.kv[:, 1, row, :, len(prompt) :] = -1e18
    assert torch.equal(target.verify(tree, cache, rows).logits, clean)


def test_loading_leaves_the_model_unchanged():
    model = tiny_model("llama")
    before, ids = model.config._attn_implementation, torch.tensor([[3, 4, 5]])
    expected = model(ids).logits
    target = load_target(model, prepack=False)
    assert model.config._attn_implementation == before
    assert torch.equal(model(ids).logits, expected)
    with pytest.raises(RuntimeError, match="expected a pass of specdec.Target"):
        try:
            model.config._attn_implementation = ATTENTION
            model(ids)
        finally:
            model.config._attn_implementation = before
    assert target.position_limit == POSITIONS


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_pass_certification(family):
    model = tiny_model(family)
    certify(Target(model), own_logits(model))


def test_model_whose_logits_differ_is_rejected_by_name():
    model = tiny_model("llama", seed=7)
    own = own_logits(model)
    hook = model.model.layers[1].register_forward_hook(lambda module, args, out: out * 1.01)
    try:
        with pytest.raises(ValueError, match="LlamaForCausalLM is not supported: expected prefill"):
            certify(Target(model), own)
    finally:
        hook.remove()


def test_positions_taken_from_cache_slots_fail_certification(monkeypatch):
    model = tiny_model("llama", seed=8)
    own, target = own_logits(model), Target(model)
    rotations = DecoderParts.rotations

    def wrong(parts, hidden, positions, kinds, made):
        slots = positions[:, :1] + torch.arange(positions.shape[1])
        return rotations(parts, hidden, slots, kinds, made)

    monkeypatch.setattr(DecoderParts, "rotations", wrong)
    with pytest.raises(ValueError, match="expected tree verification to agree"):
        certify(target, own)


def test_window_that_differs_from_the_layers_is_rejected():
    model = tiny_model("mistral", seed=9)
    window = model.config.sliding_window
    model.config.sliding_window = (
        10**6
    )  # the layers ask for this one: wider than the probe, so logits agree
    try:
        target = Target(model)
        certify(target, own_logits(model))
        model.config.layer_types = target.layer_types = ["full_attention"] * 3
        with pytest.raises(ValueError, match="expected layer 0 to attend with the window None"):
            certify(target, own_logits(model))
        model.config.layer_types = ["chunked_attention"] * 3
        with pytest.raises(ValueError, match="full or sliding attention, got chunked_attention"):
            Target(model)
    finally:
        model.config.sliding_window = window
        del model.config.layer_types


def test_layers_that_need_another_cache_are_rejected_by_name():
    model = copy.deepcopy(tiny_model("llama", seed=9))
    forward = model.model.layers[0].forward

    def picky(hidden, *, tree_pass=None, **options):
        if tree_pass is not None:
            raise TypeError("unexpected keyword argument tree_pass")
        return forward(hidden, **options)

    model.model.layers[0].forward = picky
    with pytest.raises(
        ValueError,
        match=r"LlamaForCausalLM is not supported: .* one by one, got a failure \(TypeError: unexpected",
    ):
        load_target(model)


def test_model_in_training_mode_is_rejected():
    model = tiny_model("llama", seed=9).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        Target(model)
    model.eval()


def test_exact_is_rejected_if_bits_depend_on_width(monkeypatch):
    target = Target(tiny_model("llama", dtype=torch.float32), exact=True)
    head = target.head

    def sloppy(hidden):
        verified = head(hidden)
        return verified._replace(logits=verified.logits + 1e-3 * hidden.shape[1])

    monkeypatch.setattr(target, "head", sloppy)
    with pytest.raises(ValueError, match="exact: expected torch.float32 passes on this machine"):
        certify_exact(target)
