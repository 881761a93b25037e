"""A model's first layers with its own norm and head: a smaller model of the same vocabulary."""

import copy
from pathlib import Path

from transformers import PreTrainedModel

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
