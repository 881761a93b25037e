"""Training of EAGLE-3's draft layer by training-time test (arXiv 2503.01840): inputs are those of drafting.

    pass 0    hidden states of the target, next token                   ─► target's prediction after that token
    pass j    the layer's own states of pass j - 1, the token after it  ─► target's prediction after that one

In pass j, place i holds the token j places further on. It attends to the keys of pass 0 up to i, and to those of the later
passes at i alone: a draft branch behind true text, for every position of a text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from specdec_kernels import LMHeadTopK

from ..drafters.eagle3 import Eagle3Config, Eagle3Model, new_module
from ..model.target import Target
from .ahead import draft_ranks
from .begin import copy_final_norm, copy_head, copy_last_layer
from .features import Features
from .loss import chunked_cross_entropy

DECAY = 0.8
"""Loss weight of pass j is 0.8^j, as in the authors' code."""


def exit_layers(config: Eagle3Config) -> list[int]:
    """Return the layers whose inputs are fused.

    Raises:
        ValueError: if the configuration names none, or is of a model with an embedding of its own, which is not trained.
    """
    if config.own_embedding:
        raise ValueError("own_embedding: expected False for a training, got True")
    if config.layers is None:
        raise ValueError("layers: expected some that are named for a training, got none")
    return list(config.layers)


def new_task(
    target: Target,
    config: Eagle3Config,
    features: Features,
    draft_vocabulary: Tensor | None,
    *,
    labels: str,
    validate: Callable[[], dict[str, float]],
) -> Eagle3Task:
    """Start from the target's last norm and head, and from its last layer if it fits; `labels` is not used.

    Raises:
        ValueError: if the target's embedding has another width than the layer, or the layer has its own.
    """
    exit_layers(config)  # raises for a configuration that cannot be trained
    if (found := target.embedding.shape[1]) != config.hidden_size:
        raise ValueError(f"hidden_size: expected the target's {found}, got {config.hidden_size}")
    model = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    copy_last_layer(target, model)
    copy_final_norm(target, model.output_norm)
    copy_head(target, draft_vocabulary, model.output)
    return Eagle3Task(target, model, features, draft_vocabulary=draft_vocabulary, validate=validate)


class Eagle3Task:
    """Conversations and the loss of a draft layer on them."""

    def __init__(
        self,
        target: Target,
        model: Eagle3Model,
        features: Features,
        *,
        draft_vocabulary: Tensor | None = None,
        validate: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Prepare.

        Args:
            target: the teacher; its embedding is used.
            model: the draft layer.
            features: of training texts, with the inputs of the model's layers.
            draft_vocabulary: `[Vd]` int64, the tokens of its head's rows, None for all. The teacher's distribution is
                renormalised over it.
            validate: called after each epoch; returns figures for the log.

        Raises:
            ValueError: if the hidden states of one of its layers were not collected.
        """
        layers = exit_layers(model.config)
        if missing := set(layers) - features.exits.keys():
            raise ValueError(
                f"layers: expected some of {sorted(features.exits)} whose hidden states were collected, got {min(missing)}"
            )
        self.target, self.model, self.features = target, model, features
        self.validate, self.passes = validate, model.config.passes
        self.states = [features.exits[layer] for layer in layers]
        self.teacher = target.draft_head(draft_vocabulary)
        self.head = LMHeadTopK(model.output)
        rank = draft_ranks(target.config.vocab_size, draft_vocabulary)
        self.best = rank[features.top_ids[:, 0].long()]
        self.begins = features.begins
        self.units = torch.arange(len(features))

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the passes' mean cross entropies, and the accuracy of the first and the last pass."""
        device, dtype = self.target.device, self.target.dtype
        outs: list[list[Tensor]] = [[] for _ in range(self.passes)]
        rows: list[list[Tensor]] = [[] for _ in range(self.passes)]
        spans, read = self._spans(units), 0
        # One text at a time: attention over padding would dominate the time.
        for span, begin in zip(spans, self.begins[units].tolist(), strict=True):
            inputs = [layer[span] for layer in self.states]
            states = torch.cat(inputs, -1)[None].to(device, dtype)
            tokens = self.features.tokens[span].long()[None].to(device)
            with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
                for step, out in enumerate(
                    run_passes(self.target, self.model, states, tokens, self.passes)
                ):
                    places = self._learned(span, begin, step)
                    outs[step].append(out[0, places.to(device)])
                    rows[step].append(places + step + 1 + read)
            read += len(tokens[0])
        taught = self._taught(spans)
        total = torch.zeros((), device=device)
        rights: list[float] = []
        best = torch.cat([self.best[span] for span in spans]).to(device)
        for step in range(self.passes):
            row = torch.cat(rows[step]).to(device)
            mean, right = self._compare(torch.cat(outs[step]), taught[row], best[row])
            total = total + DECAY**step * mean
            rights.append(right)
        return total, {"right_1": rights[0], f"right_{self.passes}": rights[-1]}

    def _spans(self, units: Tensor) -> list[slice]:
        starts, ends = self.features.starts[units], self.features.ends[units]
        return [slice(*span) for span in zip(starts.tolist(), ends.tolist(), strict=True)]

    def _learned(self, span: slice, begin: int, step: int) -> Tensor:
        """Return the places `[R]` of a text from which pass `step` is learned.

        The distribution learned is the one behind the token just read. Where the target's best token cannot be drafted,
        nothing is learned.
        """
        last = span.stop - 1
        at = torch.arange(min(max(span.start + step + 1, begin), last), last)
        places: Tensor = at[self.best[at] >= 0] - span.start - step - 1
        return places

    def _taught(self, spans: list[slice]) -> Tensor:
        """Return the teacher's distributions over the draft vocabulary at all positions of texts, `[N, Vd]`."""
        said = torch.cat([self.features.hidden[span] for span in spans])
        logits: Tensor = self.teacher.logits(said.to(self.target.device, self.target.dtype))
        taught: Tensor = logits.softmax(-1)
        return taught

    def _compare(self, out: Tensor, taught: Tensor, best: Tensor) -> tuple[Tensor, float]:
        """Return mean cross entropy of states `[R, E]` to distributions `[R, Vd]`, and accuracy against `best` `[R]`."""
        if not len(taught):
            return out.sum() * 0, 0.0
        out = self.model.output_norm(out)
        right = torch.zeros((), device=out.device)

        def compare(predicted: Tensor, here: slice) -> Tensor:
            chosen = predicted.gather(1, best[here, None])[:, 0]
            right.add_((chosen == predicted.amax(1)).sum())
            log_probs = predicted.clamp(min=1e-30).log()
            loss: Tensor = -torch.linalg.vecdot(taught[here], log_probs).sum(dtype=torch.float32)
            predicted -= taught[here]
            return loss

        learned = list(self.model.output.parameters())
        loss = chunked_cross_entropy(self.head, out, compare, learned, self.target.dtype)
        return loss / len(taught), float(right) / len(taught)


def run_passes(
    target: Target, model: Eagle3Model, states: Tensor, tokens: Tensor, passes: int
) -> Iterator[Tensor]:
    """Run the passes of the training-time test.

    Args:
        target: its embedding is used.
        model: the draft layer.
        states: `[B, S, layers * E']`, inputs of the target's layers side by side.
        tokens: `[B, S]` int64.
        passes: how many.

    Yields:
        The layer's states of each pass, `[B, S, E]`, before the output norm.
    """
    hidden: Tensor = model.fuse(states)
    place = torch.arange(tokens.shape[1], device=tokens.device)[None]
    keys_values: list[tuple[Tensor, Tensor]] = []
    for step in range(passes):
        tokens = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], 1)
        with torch.no_grad():
            embedded = target.embed(tokens)
        joined = model.join(embedded, hidden)
        query, *kv = model.project(joined, place + step)
        keys_values.append((kv[0], kv[1]))
        hidden = model.finish(joined, hidden, _attend(query, keys_values))
        yield hidden


def _attend(query: Tensor, keys_values: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attend causally to the first pass, and to the same place of each later pass.

    Args:
        query: `[B, S, H, D]`.
        keys_values: per pass keys and values `[B, G, S, D]`.

    Returns:
        `[B, S, H, D]`.
    """
    (keys, values), *later = keys_values
    places, size = keys.shape[2:]
    q = rearrange(query, "b s (g h) d -> b g h s d", g=keys.shape[1]) * size**-0.5
    scores = q @ keys[:, :, None].mT  # [B, G, H / G, S, S]
    behind = torch.ones(places, places, dtype=torch.bool, device=q.device).triu(1)
    scores = scores.masked_fill(behind, -torch.inf)
    own = [(q * k[:, :, None]).sum(-1, keepdim=True) for k, _ in later]
    weights = torch.cat([scores, *own], -1).softmax(-1, dtype=torch.float32).to(values.dtype)
    out = weights[..., :places] @ values[:, :, None]
    for step, (_, v) in enumerate(later):
        out = out + weights[..., places + step, None] * v[:, :, None]
    return rearrange(out, "b g h s d -> b s (g h) d")
