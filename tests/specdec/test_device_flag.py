"""A draft that learns late that all rows have stopped is the same draft."""

import pytest
import torch

import specdec
from scripted import ScriptedDrafter
from specdec import pickers
from specdec.device_flag import LateFlag, WaitedFlag, flag_on
from specdec.drafters import kangaroo as module
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.model.target import Target
from specdec.session import Session
from tiny import VOCABULARY, random_prompt, tiny_model

GAMMA = 3
RAGGED = [random_prompt(length, length) for length in (1, 19, 5, 11)]


class FlagThatTakes:
    """Is known a number of looks after it was posted; there are two looks per step."""

    late = True

    def __init__(self, looks):
        self.looks, self.posted, self.now = looks, [], 0

    def post(self, flag):
        self.posted.append((self.now, flag))

    def seen(self):
        self.now += 1
        return any(flag for at, flag in self.posted if self.now - at > self.looks)


def decode(eta, prompts, *, exact=False):
    """Text, what was drafted in each round, nodes verified, and shallow passes run."""
    dtype = torch.bfloat16 if exact else torch.float64
    target = Target(tiny_model("llama", dtype=dtype), exact=exact)
    with torch.inference_mode(False):
        torch.manual_seed(0)
        config = KangarooConfig(
            target.config.hidden_size, heads=4, kv_heads=2, head_dim=6, exit_layer=1, eta=eta, gamma=GAMMA
        )  # fmt: skip
        adapter = config.new_adapter().requires_grad_(False)
        for projection in (adapter.q_proj, adapter.k_proj, adapter.v_proj, adapter.o_proj):
            projection.weight.mul_(4)
        drafter = KangarooDrafter(target, config, adapter)
    drafts, passes, draft, extend = [], 0, drafter.draft, target.extend

    def recorded(state, budget):
        found = draft(state, budget)
        rows = zip(found.tokens, found.scores, found.valid, strict=True)
        drafts.append([(t[keep].tolist(), s[keep].tolist()) for t, s, keep in rows])
        return found

    def counted(*args, **options):
        nonlocal passes
        passes += 1
        return extend(*args, **options)

    drafter.draft, target.extend = recorded, counted
    generation = Session(target, drafter, max_nodes=16).generate(prompts, max_new_tokens=12)
    return generation.tokens, drafts, generation.metrics.nodes_per_round, passes


@pytest.mark.parametrize("prompts", [RAGGED, RAGGED[:1]], ids=["ragged", "one"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.5])
def test_late_stop_flag_does_not_change_the_draft(eta, prompts, monkeypatch):
    *expected, passes = decode(eta, prompts)
    needed = []
    for looks in range(2 * GAMMA + 1):
        monkeypatch.setattr(module, "flag_on", lambda device, looks=looks: FlagThatTakes(looks))
        *found, more = decode(eta, prompts)
        assert found == expected, looks
        needed.append(more)
    assert needed[0] == needed[1] == passes  # one look late: the step is begun, its pass is not
    assert needed == sorted(needed)
    assert (needed[-1] > passes) == (eta > 0)


def test_late_stop_flag_does_not_change_a_single_exact_row(monkeypatch):
    *expected, _ = decode(0.3, RAGGED[1:2], exact=True)
    monkeypatch.setattr(module, "flag_on", lambda device: FlagThatTakes(3))
    *found, _ = decode(0.3, RAGGED[1:2], exact=True)
    assert found == expected


def test_tensor_widths_do_not_depend_on_when_the_flag_is_seen(monkeypatch):
    widths = []
    for looks in (0, 5):
        monkeypatch.setattr(module, "flag_on", lambda device, looks=looks: FlagThatTakes(looks))
        shapes, init = [], module.Proposals

        def seen(*args, init=init, shapes=shapes, **options):
            proposals = init(*args, **options)
            shapes.append((proposals.tokens.shape, proposals.shallow.hidden.shape))
            return proposals

        with monkeypatch.context() as patched:
            patched.setattr(module, "Proposals", seen)
            decode(1.5, RAGGED)
        widths.append(shapes)
    assert widths[0] == widths[1]


@pytest.mark.parametrize("looks", [0, 1, 3, 99])
def test_late_stop_flag_does_not_change_a_sampling_walk(looks, monkeypatch):
    options = {"do_sample": True, "seed": 3, "repetition_penalty": 1.3, "max_new_tokens": 12}
    options |= {"eos_token_id": [7], "pad_token_id": 7}
    target = Target(tiny_model("llama"))
    expected = specdec.generate(target, RAGGED, "plain", **options)
    widest = max(map(len, RAGGED))
    texts = [ids + new[widest:] for ids, new in zip(RAGGED, expected.tolist(), strict=True)]
    monkeypatch.setattr(pickers.PathPicker, "_watched", lambda *_: False)
    monkeypatch.setattr(pickers, "flag_on", lambda device: FlagThatTakes(looks))
    drafter = ScriptedDrafter(texts, right=0.8, seed=2, most_proposals=20, vocabulary=VOCABULARY)
    found = specdec.generate(target, RAGGED, drafter, max_nodes=16, **options)
    assert torch.equal(found, expected)
    assert max(drafter.accepted) >= 2


def test_cuda_flag_is_seen_once_its_copy_is_complete(monkeypatch):
    class Event:
        complete = False

        def record(self, stream):
            events.append(self)

        def query(self):
            return self.complete

    events = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    flag = LateFlag()
    assert not flag.seen()
    for value in (False, True, True):
        flag.post(torch.tensor(value))
    assert not flag.seen()
    events[0].complete = True
    assert not flag.seen()  # it says no
    events[2].complete = True
    assert not flag.seen()  # copies arrive in order
    events[1].complete = True
    assert flag.seen()
    assert flag.seen()


def test_waited_flag_is_seen_immediately():
    flag = WaitedFlag()
    assert not flag.seen()
    flag.post(torch.tensor(False))
    assert not flag.seen()
    flag.post(torch.tensor(True))
    assert flag.seen()


def test_only_cuda_uses_the_asynchronous_flag():
    kinds = {kind: type(flag_on(torch.device(kind))) for kind in ("cpu", "mps", "cuda")}
    assert kinds == {"cpu": WaitedFlag, "mps": WaitedFlag, "cuda": LateFlag}
