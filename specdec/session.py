"""Generation for callers: `generate` for one call, `Session` for a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cache import TreeCache
from .decode import decode
from .drafters import Drafter, load_drafter
from .loading import load_target
from .metrics import Metrics, Stopwatch
from .state import Emitted, State
from .target import Target

MAX_NODES = 16
LARGEST_TREE = 256


@dataclass(slots=True)
class Generation:
    """What was written, and how."""

    tokens: list[list[int]]
    """New tokens per prompt, the end-of-text token included."""
    metrics: Metrics = field(default_factory=Metrics)


class Session:
    """A target, a drafter and the text they share; a prompt that continues it is read from where it is new."""

    def __init__(
        self, target: Target, drafter: Drafter | str = "none", *, max_nodes: int = MAX_NODES
    ) -> None:
        """Begin without text.

        Args:
            target: from `load_target`.
            drafter: a drafter or the name of one.
            max_nodes: most nodes verified per row and round, 1 to 256, the root included.

        Raises:
            ValueError: if the drafter's name is unknown or `max_nodes` is out of range.
        """
        check_max_nodes(max_nodes)
        self.target = target
        self.drafter = load_drafter(drafter) if isinstance(drafter, str) else drafter
        self.max_nodes = max_nodes
        self._cache: TreeCache | None = None
        self._texts: list[list[int]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Iterable[int] = (),
    ) -> Generation:
        """Write greedily until each row ends; arguments as in `stream`."""
        generation = Generation([[] for _ in prompts])
        for emitted in self.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            metrics=generation.metrics,
        ):
            for e in emitted:
                generation.tokens[e.row] += e.tokens
        return generation

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Iterable[int] = (),
        metrics: Metrics | None = None,
    ) -> Iterator[list[Emitted]]:
        """Write greedily, and hand out what each round adds.

        Args:
            prompts: token ids per row, of any lengths. A single prompt that begins with this session's text so far
                is read from the first new token on.
            max_new_tokens: most new tokens per row; fewer where the model's positions end.
            eos_token_ids: tokens after which a row ends.
            metrics: filled as the text is written.

        Yields:
            Per round, what each unfinished row gained.

        Raises:
            ValueError: if there is no prompt, a prompt is empty, holds ids outside the vocabulary or fills the
                model's positions, or `max_new_tokens` is below 1.
        """
        texts = [list(prompt) for prompt in prompts]
        self._validate(texts, max_new_tokens)
        metrics = Metrics() if metrics is None else metrics
        clock = Stopwatch()
        metrics.seconds = clock.seconds
        device = self.target.device
        limits = [min(max_new_tokens, self.target.position_limit - len(text)) for text in texts]
        capacity = max(len(text) + limit for text, limit in zip(texts, limits, strict=True))

        with clock("prefill"), torch.inference_mode():
            cache = self._reuse_cache(texts, capacity)
            known = cache.host_lengths[0]
            text = torch.zeros(
                len(texts), capacity + self.max_nodes + 1, dtype=torch.int64, device=device
            )
            for row, ids in enumerate(texts):
                text[row, : len(ids)] = torch.tensor(ids, device=device)
            prompt = text[:, known : max(map(len, texts))]
            prefilled = self.target.prefill(prompt, [len(ids) - known for ids in texts], cache)
        state = State(cache, text, limits=limits, eos_token_ids=frozenset(eos_token_ids))
        self._texts = texts
        rounds = decode(
            self.target, self.drafter, state, prefilled, max_nodes=self.max_nodes, clock=clock
        )
        for emitted in rounds:
            for e in emitted:
                texts[e.row] += e.tokens
            metrics.count(emitted)
            yield emitted

    def _reuse_cache(self, texts: list[list[int]], capacity: int) -> TreeCache:
        """Keep the cached tokens that a single prompt shares with this session's text, or begin anew."""
        cache = self._cache
        if cache is not None and len(texts) == len(self._texts) == 1 and capacity <= cache.capacity:
            # The last token of a prompt is always read again: its logits are wanted.
            most = min(cache.host_lengths[0], len(self._texts[0]), len(texts[0]) - 1)
            shared = next((i for i in range(most) if self._texts[0][i] != texts[0][i]), most)
            cache.set_lengths([shared])
            return cache
        self._cache = self.target.new_cache(
            rows=len(texts),
            # A conversation goes on: room to grow without reading everything again.
            capacity=min(2 * capacity, max(capacity, self.target.position_limit)),
            tree_capacity=self.max_nodes,
        )
        return self._cache

    def _validate(self, texts: list[list[int]], max_new_tokens: int) -> None:
        if not texts:
            raise ValueError("prompts: expected at least one, got none")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        vocabulary = self.target.config.vocab_size
        for row, ids in enumerate(texts):
            if not ids:
                raise ValueError(f"prompts: expected at least one token, got none in row {row}")
            if len(ids) >= self.target.position_limit:
                raise ValueError(
                    f"prompts: expected fewer tokens than the model's {self.target.position_limit} "
                    f"positions, got {len(ids)} in row {row}"
                )
            if min(ids) < 0 or max(ids) >= vocabulary:
                raise ValueError(
                    f"prompts: expected ids from 0 to {vocabulary - 1}, got "
                    f"{min(ids)} to {max(ids)} in row {row}"
                )


def check_max_nodes(max_nodes: int) -> None:
    """Raise ValueError unless a tree may have that many nodes."""
    if not 1 <= max_nodes <= LARGEST_TREE:
        raise ValueError(f"max_nodes: expected 1 to {LARGEST_TREE}, got {max_nodes}")


def generate(
    model: PreTrainedModel | Target,
    input_ids: Tensor | Sequence[Tensor],
    drafter: Drafter | str = "lookup",
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    max_nodes: int = MAX_NODES,
) -> Tensor:
    """Write the text that `model.generate(..., do_sample=False)` writes, in fewer passes.

    Args:
        model: a Hugging Face causal language model in evaluation mode, or what `load_target` made of one; the
            latter saves the load-time checks of every call.
        input_ids: `[B, L]` int64 on the model's device, or B tensors `[L_b]`.
        drafter: a drafter or the name of one; never changes the text.
        attention_mask: `[B, L]`, 0 at padding on either side; None where nothing is padded.
        max_new_tokens: most new tokens per row.
        eos_token_id: tokens after which a row ends; None for those of the model's generation config.
        pad_token_id: fills ended rows; None for the generation config's, or the first end-of-text token.
        max_nodes: most nodes verified per row and round, 1 to 256.

    Returns:
        `[B, L + T]` int64, the input followed by up to T new tokens, as the library returns it.

    Raises:
        ValueError: if an argument is out of range, rows live on different devices, or the model is not supported.
    """
    target = model if isinstance(model, Target) else load_target(model)
    if not isinstance(input_ids, Tensor):
        input_ids, attention_mask = _stack(list(input_ids))
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: expected shape [B, L], got {list(input_ids.shape)}")
    if input_ids.device != target.device:
        raise ValueError(f"input_ids: expected device {target.device}, got {input_ids.device}")
    keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if keep.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: expected shape {list(input_ids.shape)}, got {list(keep.shape)}"
        )
    prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, keep, strict=True)]

    config = target.model.generation_config
    eos = config.eos_token_id if config and eos_token_id is None else eos_token_id
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    pad = config.pad_token_id if config and pad_token_id is None else pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    new = (
        Session(target, drafter, max_nodes=max_nodes)
        .generate(prompts, max_new_tokens=max_new_tokens, eos_token_ids=ends)
        .tokens
    )
    longest = max(map(len, new))
    padded = [ids + [pad] * (longest - len(ids)) for ids in new]
    return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], 1)


def _stack(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad rows of any lengths on the left."""
    if not rows:
        raise ValueError("input_ids: expected at least one row, got none")
    devices = {row.device for row in rows}
    if len(devices) > 1:
        raise ValueError(
            f"input_ids: expected all rows on one device, got {sorted(map(str, devices))}"
        )
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
    )
    return ids, mask
