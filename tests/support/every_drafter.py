"""Every way of drafting, with random weights, for tests of whole decodes on tiny models."""

import functools
import tempfile
from pathlib import Path

import torch

from specdec.datastore.build import build_datastore
from specdec.datastore.store import Datastore
from specdec.drafters import LookupDrafter, MixedDrafter, PlainDrafter, SuffixDrafter
from specdec.drafters.eagle3 import Eagle3Config, Eagle3Drafter, new_module
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.drafters.lookahead import LookaheadConfig, LookaheadDrafter
from specdec.drafters.medusa import MedusaConfig, MedusaDrafter, MedusaModel
from specdec.drafters.model import ModelConfig, ModelDrafter
from specdec.drafters.recycling import RecyclingConfig, RecyclingDrafter
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.drafters.rest import RestConfig, RestDrafter
from specdec.model.target import Target
from tiny import VOCABULARY, random_prompt, tiny_model


def plain(target):
    return PlainDrafter()


def lookup(target):
    return LookupDrafter()


def suffix(target):
    return SuffixDrafter()


@functools.cache
def store():
    """A store of random text, gone when the tests end."""
    folder = tempfile.TemporaryDirectory()
    texts = [random_prompt(300, seed) for seed in range(3)]
    build_datastore(Path(folder.name), texts, vocabulary_size=VOCABULARY)
    return folder, Datastore.open(folder.name)


def rest(target):
    return RestDrafter(store()[1], RestConfig(min_prob=1e-9))


def redrafter(target, **options):
    torch.manual_seed(1)
    width = target.config.hidden_size
    config = ReDrafterConfig(width, exit_dim=2 * width, beam_width=3, draft_length=3, min_prob=0, min_step_prob=0) \
        if not options else ReDrafterConfig(width, **options)  # fmt: skip
    return ReDrafter(target, ReDrafterModel(config, VOCABULARY))


def projected_redrafter(target):
    width = target.config.hidden_size
    return redrafter(
        target, exit_dim=width + 16, tied_head=True, beam_width=4, draft_length=2, top_rule=10,
        keep="final",
    )  # fmt: skip


def kangaroo(target, vocabulary=None, **options):
    torch.manual_seed(2)
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "exit_layer": 1, "eta": 0.02, "gamma": 3}
    config = KangarooConfig(target.config.hidden_size, **shape, **options)
    return KangarooDrafter(target, config, config.new_adapter(VOCABULARY), vocabulary)


def lean_kangaroo(target):
    return kangaroo(target, torch.arange(0, VOCABULARY, 3))


def eagle3(target, vocabulary=None, **settings):
    """Reads all layers of a tiny model but the first."""
    torch.manual_seed(4)
    settings = {"depth": 3, "width": 3, "min_prob": 0, "min_step_prob": 0} | settings
    config = Eagle3Config(
        target.config.hidden_size, intermediate_size=40, heads=4, kv_heads=2, head_dim=16,
        layers=tuple(range(1, len(target.layer_types))), **settings,
    )  # fmt: skip
    model = new_module(config, VOCABULARY, vocabulary).requires_grad_(False)
    return Eagle3Drafter(target, config, model, vocabulary)


def narrow_eagle3(target):
    """A third narrower than the target, with an embedding of its own."""
    torch.manual_seed(4)
    width = target.config.hidden_size
    config = Eagle3Config(
        width * 2 // 3, intermediate_size=40, heads=4, kv_heads=2, head_dim=8, target_size=width, own_embedding=True,
        layers=tuple(range(1, len(target.layer_types))), depth=3, width=3, min_prob=0, min_step_prob=0,
    )  # fmt: skip
    vocabulary = torch.arange(1, VOCABULARY, 2)
    model = new_module(config, VOCABULARY, vocabulary).requires_grad_(False)
    return Eagle3Drafter(target, config, model, vocabulary)


def lean_eagle3(target):
    """Beside what needs no training, and with a head of some tokens."""
    drafter = eagle3(target, torch.arange(1, VOCABULARY, 2), depth=4, norm_residual=True)
    return MixedDrafter([drafter, LookupDrafter(), lookahead(target)])


def mixed_eagle3(target):
    """Two trained drafters in one tree."""
    return MixedDrafter([redrafter(target), narrow_eagle3(target)])


def medusa(target, vocabulary=None, **options):
    torch.manual_seed(4)
    config = MedusaConfig(target.config.hidden_size, **({"heads": 3, "min_prob": 0} | options))
    return MedusaDrafter(target, MedusaModel(config, VOCABULARY, vocabulary))


def mixed_medusa(target):
    ids = torch.arange(0, VOCABULARY, 2)
    lean = medusa(target, ids, heads=4, blocks=2, output="projected", tree="small_13")
    return MixedDrafter([lean, redrafter(target), recycling(target)])


def mixed(target):
    return MixedDrafter([redrafter(target), LookupDrafter()])


def lookahead(target):
    return LookaheadDrafter(LookaheadConfig(window=3, ngram=4, guesses=3, min_prob=1e-9))


def recycling(target):
    config = RecyclingConfig(ranks=3, length=3, min_prob=0.001)
    return RecyclingDrafter(config, vocabulary_size=VOCABULARY)


def training_free(target):
    return MixedDrafter([suffix(target), recycling(target), lookahead(target)])


def all_training_free(target):
    return MixedDrafter([small_model(target), rest(target), LookupDrafter(), recycling(target)])


def small_model(target):
    """A chain of a model that knows nothing of the target."""
    model = tiny_model.__wrapped__("llama-16", 3, target.dtype).to(target.device)
    return ModelDrafter(target, Target(model), ModelConfig(length=3, min_prob=0, min_step_prob=0))


def own_model(target):
    """Beams of the target itself, most of them right."""
    return ModelDrafter(target, target, ModelConfig(length=3, width=3, min_prob=0, min_step_prob=0))


def layer_kangaroo(target):
    return kangaroo(target, adapter="layer", mlp_size=40, own_head=True)


def bare_kangaroo(target):
    return kangaroo(target, adapter="none")


# Each training-free method is in one of the unions.
DRAFTERS = [
    plain, lookup, redrafter, projected_redrafter, kangaroo, lean_kangaroo, eagle3, lean_eagle3, mixed, training_free,
    all_training_free, own_model, medusa, mixed_medusa, mixed_eagle3,
]  # fmt: skip
