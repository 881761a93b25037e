"""The registry of drafting methods, read by the command line, checkpoints, training and `load_drafter`.

A method's code lies in files of its name. A method without training has one:

    drafters/NAME.py   new_drafter(target, **settings), or new_drafter(target, argument, **settings)

A trained method has two:

    drafters/NAME.py   CONFIG, a dataclass of the shape and of how it drafts; DRAFTER, the class
                       new_module(config, vocabulary_size, draft_vocabulary), without weights of its own
                       join(target, config, module, draft_vocabulary), the drafter
                       weights_of(drafter), what a checkpoint keeps, `draft_vocabulary` included where there is one
    train/NAME.py      exit_layers(config), whose hidden states are collected
                       new_task(target, config, features, draft_vocabulary, labels=..., validate=...)

The registry itself imports no torch; the files are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Method:
    """A drafting method."""

    help: str
    """What it drafts with, in one line; for a trained method, completes a sentence that begins with "Train"."""
    settings: tuple[str, ...] = ()
    """Fields of the configuration that can be set whenever the drafter is loaded."""
    argument: str = ""
    """Name of the argument after `name:`, as shown in help; in brackets if optional."""
    trained: bool = False
    """Whether it needs a checkpoint."""
    alone: bool = False
    """Whether it drafts with the target's own layers, and so cannot be part of a union."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old names of fields. Files may always use them; calls may for one more release, with a warning."""


METHODS = {
    "plain": Method("nothing: plain decoding, one token per pass, the baseline"),
    "lookup": Method(
        "what followed the last tokens earlier in the text",
        settings=("places", "length", "min_prob"),
    ),
    "suffix": Method(
        "what followed the last tokens earlier in any text of the session",
        settings=("places", "length", "recency", "others", "min_prob", "memory"),
    ),
    "rest": Method(
        "what followed the last tokens in a store of text, by REST",
        settings=("places", "length", "longest", "shortest", "min_prob"),
        argument="STORE",
    ),
    "recycling": Method(
        "the tokens that the target ranked highest after the same token before, by token recycling",
        settings=("ranks", "length", "min_prob"),
    ),
    "lookahead": Method(
        "n-grams that the target generates beside the text, by Lookahead decoding",
        argument="[W/N/G]",
        settings=("window", "ngram", "guesses", "text_ngrams", "min_prob"),
    ),
    "model": Method(
        "a smaller model with the same vocabulary",
        settings=("length", "width", "min_prob", "min_step_prob"),
        argument="NAME",
    ),
    "redrafter": Method(
        "a ReDrafter (recurrent draft model with beam search) by local distillation",
        settings=("beam_width", "draft_length", "keep", "min_prob", "min_step_prob", "top_rule"),
        trained=True,
        renamed={"least": "min_prob", "least_step": "min_step_prob"},
    ),
    "medusa": Method(
        "Medusa heads (one per position ahead) by self-distillation",
        settings=("tree", "ranks", "draft_length", "min_prob"),
        trained=True,
    ),
    "kangaroo": Method(
        "a Kangaroo adapter (early exit after the target's first layers) by self-distillation",
        settings=("eta", "gamma"),
        trained=True,
        alone=True,
    ),
    "eagle3": Method(
        "an EAGLE-3 head (a decoder layer on the hidden states of several target layers) by training-time test",
        settings=("depth", "width", "min_prob", "min_step_prob"),
        trained=True,
    ),
}


def drafter_file(method: str) -> Any:
    """Import `drafters/NAME.py`."""
    return import_module(f"{__package__}.{method}")


def train_file(method: str) -> Any:
    """Import `train/NAME.py`."""
    return import_module(f"..train.{method}", __package__)


def method_of(config: Any) -> str:
    """Return the name of the trained method that a configuration belongs to."""
    trained = (name for name, method in METHODS.items() if method.trained)
    return next(name for name in trained if type(config) is drafter_file(name).CONFIG)
