"""Training EAGLE-3's layer by training-time test (arXiv 2503.01840): it learns on what it will read while it drafts.

    pass 0    states of the target, the next token         ─► what the target says after that token
    pass j    the layer's own states of pass j - 1, the token after ─► what the target says after that one

In pass j the token at place i stands j places further on. It sees what pass 0 made of the text up to i, and what its
own place has become since: a draft's branch behind true text, at every place of a text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec_kernels import LMHeadTopK

from ..drafters.eagle3 import Eagle3Config, Eagle3Model, new_module
from ..model.target import Target
from .features import Features
from .loss import chunked_cross_entropy

PASSES = 7
"""Of the training-time test, in the authors' code."""
DECAY = 0.8
"""Weight of each pass's loss beside that of the one before it, likewise."""


def exit_layers(config: Eagle3Config) -> list[int]:
    """Name the layers whose inputs are fused.

    Raises:
        ValueError: if the configuration leaves them to the target.
    """
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
    """Begin with random weights; `labels` is ReDrafter's, here it is the distribution.

    Raises:
        ValueError: if the target's embedding has another width than the layer.
    """
    if (found := target.embedding.shape[1]) != config.hidden_size:
        raise ValueError(f"hidden_size: expected the target's {found}, got {config.hidden_size}")
    model = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    return Eagle3Task(target, model, features, draft_vocabulary=draft_vocabulary, validate=validate)


class Eagle3Task:
    """Conversations, and the loss of a draft layer on them."""

    def __init__(
        self,
        target: Target,
        model: Eagle3Model,
        features: Features,
        *,
        draft_vocabulary: Tensor | None = None,
        passes: int = PASSES,
        validate: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Prepare.

        Args:
            target: the teacher; its embedding and its head are used.
            model: what is trained.
            features: of training texts, with the inputs of the model's layers.
            draft_vocabulary: `[Vd]` int64, the tokens of its head's rows; the teacher's distribution is renormalised over it.
                None for all tokens.
            passes: of the training-time test.
            validate: measures the model after each epoch.

        Raises:
            ValueError: if inputs of one of its layers were not collected.
        """
        layers = exit_layers(model.config)
        if missing := set(layers) - features.exits.keys():
            raise ValueError(
                f"layers: expected some of {sorted(features.exits)} whose hidden states were collected, got {min(missing)}"
            )
        self.target, self.model, self.features = target, model, features
        self.validate, self.passes = validate, passes
        self.states = [features.exits[layer] for layer in layers]
        self.teacher = target.draft_head(draft_vocabulary)
        self.head = LMHeadTopK(model.output)
        self.drafted = torch.ones(target.config.vocab_size, dtype=torch.bool)
        if draft_vocabulary is not None:
            self.drafted = torch.zeros_like(self.drafted).index_fill(
                0, draft_vocabulary.cpu(), True
            )
        self.begins = features.begins
        self.units = torch.arange(len(features))

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted mean cross entropies of all passes, and how often the best token of the first and the last is right."""
        features = self.features
        starts, ends = features.starts[units], features.ends[units]
        spans = [slice(*span) for span in zip(starts.tolist(), ends.tolist(), strict=True)]
        device, dtype = self.target.device, self.target.dtype
        states = torch.cat(
            [pad_sequence([x[span] for span in spans], batch_first=True) for x in self.states], -1
        )
        tokens = pad_sequence([features.tokens[span].long() for span in spans], batch_first=True)
        place = torch.arange(tokens.shape[1])
        total = torch.zeros((), device=device)
        rights: list[float] = []
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            states, tokens = states.to(device, dtype), tokens.to(device)
            rounds = list(run_passes(self.target, self.model, states, tokens, self.passes))
        for step, out in enumerate(rounds):
            # Whose distribution is learned: that of the token just read.
            at = starts[:, None] + place + (step + 1)
            learned = (at >= self.begins[units][:, None]) & (at < ends[:, None] - 1)
            at = at[learned]
            # Where the target would write what cannot be drafted, there is nothing to learn.
            known = self.drafted[features.top_ids[at, 0].long()]
            learned[learned.clone()] = known
            mean, right = self._compare(out[learned.to(device)], at[known])
            total = total + DECAY**step * mean
            rights.append(right)
        return total, {"right_1": rights[0], f"right_{self.passes}": rights[-1]}

    def _compare(self, out: Tensor, at: Tensor) -> tuple[Tensor, float]:
        """Return the mean cross entropy of states `[R, E]` to what the teacher says at places `[R]`, and how often both agree."""
        if not len(at):
            return out.sum() * 0, 0.0
        out = self.model.output_norm(out).to(self.head.linear.weight.dtype)
        said = self.features.hidden[at].to(self.target.device, self.target.dtype)
        right = torch.zeros((), device=out.device)

        def compare(predicted: Tensor, here: slice) -> Tensor:
            taught = self.teacher.logits(said[here]).softmax(-1).to(predicted.dtype)
            right.add_((predicted.argmax(1) == taught.argmax(1)).sum())
            loss = -(taught * predicted.clamp(min=1e-30).log()).sum(dtype=torch.float32)
            predicted -= taught
            return loss

        learned = list(self.model.output.parameters())
        loss = chunked_cross_entropy(self.head, out, compare, learned)
        return loss / len(at), float(right) / len(at)


def run_passes(
    target: Target, model: Eagle3Model, states: Tensor, tokens: Tensor, passes: int = PASSES
) -> Iterator[Tensor]:
    """Run the training-time test.

    Args:
        target: whose embedding is read.
        model: the layer.
        states: `[B, S, layers * E']`, inputs of the target's layers side by side.
        tokens: `[B, S]` int64, of the texts; behind a text any valid id.
        passes: how many.

    Yields:
        Per pass the layer's states `[B, S, E]`, not normed.
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
    """Attend causally to the first pass and, of each later one, to the own place alone.

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
