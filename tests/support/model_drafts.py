"""Draft models with the target's vocabulary, and recording drafters."""

import copy
from pathlib import Path

from transformers import PreTrainedModel

from specdec.drafters import Drafter
from specdec.drafters.model import ModelConfig, ModelDrafter
from tiny import letters


def cut_model(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Copy a model without the layers after the first ones."""
    cut = copy.deepcopy(model)
    decoder = cut.get_decoder()
    del (decoder.layers if hasattr(decoder, "layers") else decoder.h)[layers:]
    config = decoder.config
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return cut


def save_with_letters(model: PreTrainedModel, folder: Path) -> str:
    """Write a model and a tokenizer of single letters; returns the folder's name."""
    model.save_pretrained(folder)
    letters().save_pretrained(folder)
    return str(folder)


def drafter_of(target, small, **config):
    """Drafts all steps and proposes all of them, where the configuration says nothing else."""
    return ModelDrafter(target, small, ModelConfig(**{"min_prob": 0, "min_step_prob": 0} | config))


class Watched(Drafter):
    """Hands on what another drafter proposes, and keeps what became of it."""

    def __init__(self, inner):
        self.inner, self.rounds = inner, []

    def start(self, state):
        self.inner.start(state)

    def draft(self, state, budget):
        self.depths = budget.row_depth.tolist()
        self.proposals = self.inner.draft(state, budget)
        return self.proposals

    def observe(self, state, tree, accepted, verified):
        self.rounds.append((self.depths, self.proposals, tree, accepted, verified))
