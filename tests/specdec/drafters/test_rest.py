import copy
import json
import pickle

import numpy as np
import pytest
import torch

from specdec.datastore.build import build_datastore
from specdec.datastore.store import Datastore, tokenizer_fingerprint
from specdec.drafters import Budget
from specdec.drafters.lookup import LookupDrafter
from specdec.drafters.mixed import MixedDrafter
from specdec.drafters.parts.calibration import calibration_of
from specdec.drafters.rest import RestConfig, RestDrafter, new_drafter
from specdec.model.target import Target
from specdec.session import Session
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model


class Words:
    """A tokenizer, as far as a store asks it."""

    def __init__(self, words):
        self.words = words

    def get_vocab(self):
        return {word: at for at, word in enumerate(self.words)}


def drafter_of(path, texts, **config):
    build_datastore(path, texts, vocabulary_size=VOCABULARY)
    return RestDrafter(Datastore.open(path), RestConfig(**{"min_prob": 1e-6} | config))


def drafted(drafter, text, depth=10, nodes=63):
    trie = drafter._trie(text, Budget(nodes + 1, depth, torch.tensor([depth])))
    paths = []
    for token, parent in zip(trie.tokens.tolist(), trie.parents.tolist(), strict=True):
        paths.append((*paths[parent], token) if parent >= 0 else (token,))
    return dict(zip(paths, np.exp(trie.scores).tolist(), strict=True))


def test_continuations_of_the_longest_match_are_scored_by_their_share(tmp_path):
    drafter = drafter_of(tmp_path / "s", [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4], [9, 3, 6]])
    found = drafted(drafter, [8, 2, 3])
    assert set(found) == {(4,), (5,)}
    assert found[4,] / found[5,] == pytest.approx(2)
    odds = calibration_of("rest").tables["odds"]
    assert found[4,] == pytest.approx(2 * odds[1] / (3 * odds[1] + 3**0.5))
    assert set(drafted(drafter, [9, 3])) == {(6,)}


def test_matches_below_the_shortest_and_no_matches_propose_nothing(tmp_path):
    texts = [[1, 2, 3]]
    assert drafted(drafter_of(tmp_path / "a", texts, shortest=2), [5, 2]) == {}
    assert set(drafted(drafter_of(tmp_path / "b", texts), [5, 2])) == {(3,)}
    assert drafted(drafter_of(tmp_path / "c", texts), [4, 4]) == {}


def test_depth_length_and_nodes_limit_a_draft(tmp_path):
    drafter = drafter_of(tmp_path / "s", [list(range(1, 40))], length=6)
    assert max(map(len, drafted(drafter, [1, 2]))) == 6
    assert max(map(len, drafted(drafter, [1, 2], depth=3))) == 3
    assert drafted(drafter, [1, 2], depth=0) == {}
    assert len(drafted(drafter, [1, 2], nodes=2)) == 2


def test_equal_stores_give_equal_drafts(tmp_path):
    texts = [random_prompt(30, seed) for seed in range(40)]
    one, other = (drafter_of(tmp_path / name, texts, places=8) for name in "ab")
    for text in texts[:10]:
        assert drafted(one, text[:9]) == drafted(other, text[:9]) == drafted(one, text[:9])


def test_tokens_equal_transformers_alone_and_in_a_union(tmp_path):
    target = Target(tiny_model("llama", dtype=torch.float32))
    prompts = [random_prompt(8, seed) for seed in range(2)]
    expected = [library_greedy(target.model, prompt, 25) for prompt in prompts]
    drafter = drafter_of(tmp_path / "s", [p + e for p, e in zip(prompts, expected, strict=True)])
    for made in (drafter, MixedDrafter([drafter, LookupDrafter()])):
        written = Session(target, made).generate(prompts, max_new_tokens=25)
        assert written.tokens == expected
        assert len(written.metrics.gains) < 25  # of two rows


def test_store_of_another_vocabulary_or_tokenizer_is_rejected(tmp_path):
    ours, others = Words("abc"), Words("acb")
    target = Target(tiny_model("llama"), ours)
    path = tmp_path / "s"
    build_datastore(path, [[1, 2]], vocabulary_size=3, tokenizer=tokenizer_fingerprint(ours))
    assert new_drafter(target, str(path), places=3).config.places == 3
    target.tokenizer = others
    with pytest.raises(ValueError, match="store: expected ids of the tokenizer .*, got those of"):
        new_drafter(target, str(path))
    target.tokenizer = None
    new_drafter(target, str(path))
    # A tokenizer may know more ids than the model; one that occurs cannot be drafted.
    build_datastore(tmp_path / "known", [[1, 2]], vocabulary_size=VOCABULARY + 1)
    new_drafter(target, str(tmp_path / "known"))
    build_datastore(tmp_path / "wide", [[1, VOCABULARY]], vocabulary_size=VOCABULARY + 1)
    with pytest.raises(ValueError, match=f"store: expected ids of the target, which are below {VOCABULARY}"):  # fmt: skip
        new_drafter(target, str(tmp_path / "wide"))
    with pytest.raises(ValueError, match="store: expected a folder that specdec datastore built"):
        new_drafter(target, str(tmp_path / "nothing"))


def test_copied_drafter_reopens_its_store(tmp_path):
    drafter = drafter_of(tmp_path / "s", [[1, 2, 3]])
    for copied in (copy.deepcopy(drafter), pickle.loads(pickle.dumps(drafter))):
        assert drafted(copied, [1, 2]) == drafted(drafter, [1, 2])


@pytest.mark.parametrize(
    "change",
    [{"places": 0}, {"length": 65}, {"longest": 33}, {"shortest": 17}, {"shortest": 0}, {"min_prob": 0.0}],
)  # fmt: skip
def test_error_names_the_out_of_range_setting(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected"):
        RestConfig(**change)


def test_manifest_describes_the_store(tmp_path):
    drafter_of(tmp_path / "s", [[1, 2, 3], [4, 5]])
    said = json.loads((tmp_path / "s" / "store.json").read_text())
    assert said["format"] == "specdec datastore" and said["vocabulary_size"] == VOCABULARY
    assert [(shard["texts"], shard["tokens"], shard["places"]) for shard in said["shards"]] == [(2, 5, 3)]  # fmt: skip
