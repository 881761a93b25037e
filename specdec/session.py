"""Generation for callers: `generate` for one call, `Session` for a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from .cache import TreeCache
from .decode import decode
from .drafters import Drafter, load_drafter
from .loading import load_target
from .metrics import Metrics, Stopwatch
from .state import Emitted, State
from .target import Target

MAX_NODES = 16
LARGEST_TREE = 256
# Settings with which the library's greedy generation is more than the best token, and values that change nothing.
ALTERS_GREEDY_TEXT: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "stop_strings": (),
    "max_time": (),
    "num_beams": (1,),
}


@dataclass(slots=True)
class Generation:
    """What was written, and how."""

    tokens: list[list[int]]
    """New tokens per prompt, the end-of-text token included."""
    metrics: Metrics = field(default_factory=Metrics)


class Session:
    """A target, a drafter and the text they share; a prompt that continues it is read from where it is new."""

    def __init__(
        self, target: Target, drafter: Drafter | str = "best", *, max_nodes: int = MAX_NODES
    ) -> None:
        """Begin without text.

        Args:
            target: from `load_target`.
            drafter: a drafter, or a name as in `load_drafter`.
            max_nodes: most nodes verified per row and round, 1 to 256, the root included.

        Raises:
            ValueError: if the drafter cannot be loaded or `max_nodes` is out of range.
        """
        check_max_nodes(max_nodes)
        self.target = target
        self.drafter = load_drafter(drafter, target) if isinstance(drafter, str) else drafter
        self.max_nodes = max_nodes
        self._cache: TreeCache | None = None
        self._texts: list[list[int]] = []
        self._stream: object = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Iterable[int] = (),
        stop_short: int = 0,
    ) -> Generation:
        """Write greedily until each row ends; arguments and errors as in `stream`."""
        generation = Generation([[] for _ in prompts])
        for emitted in self.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            stop_short=stop_short,
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
        stop_short: int = 0,
        metrics: Metrics | None = None,
    ) -> Iterator[list[Emitted]]:
        """Write greedily, and hand out what each round adds.

        Args:
            prompts: token ids per row, of any lengths. A single prompt that begins with the session's text so far
                is read from the first new token on.
            max_new_tokens: most new tokens per row; fewer where the model's positions end.
            eos_token_ids: tokens after which a row ends.
            stop_short: a row ends when no more tokens than this may come; gamma for Kangaroo's authors, who begin a
                round only where a whole draft fits.
            metrics: added to as the text is written.

        Returns:
            Per round, what each unfinished row gained. A stream that is continued after a newer one began raises
            RuntimeError: they share one cache.

        Raises:
            ValueError: if there is no prompt, a prompt is empty, holds ids outside the vocabulary or fills the
                model's positions, or `max_new_tokens` is below 1.
        """
        texts = [list(prompt) for prompt in prompts]
        self._validate(texts, max_new_tokens)
        if not 0 <= stop_short < max_new_tokens:
            raise ValueError(f"stop_short: expected 0 to {max_new_tokens - 1}, got {stop_short}")
        metrics = Metrics() if metrics is None else metrics
        return self._rounds(texts, max_new_tokens, frozenset(eos_token_ids), stop_short, metrics)

    def _rounds(
        self,
        texts: list[list[int]],
        most: int,
        eos_token_ids: frozenset[int],
        stop_short: int,
        metrics: Metrics,
    ) -> Iterator[list[Emitted]]:
        self._stream = this = object()
        clock = Stopwatch(metrics.seconds)
        limits = [min(most, self.target.position_limit - len(text)) for text in texts]
        capacity = max(len(text) + limit for text, limit in zip(texts, limits, strict=True))
        with clock("prefill"), torch.inference_mode():
            cache = self._reuse_cache(texts, capacity)
            known = cache.host_lengths[0]
            columns = capacity + self.max_nodes + 1
            padded = torch.tensor([ids + [0] * (columns - len(ids)) for ids in texts])
            text = padded.to(self.target.device)
            prompt = text[:, known : max(map(len, texts))]
            prefilled = self.target.prefill(
                prompt, [len(ids) - known for ids in texts], cache, self.drafter.tap
            )
        state = State(
            cache, text, limits=limits, eos_token_ids=eos_token_ids, stop_short=stop_short
        )
        self._texts = texts
        for emitted in decode(
            self.target, self.drafter, state, prefilled, max_nodes=self.max_nodes, clock=clock
        ):
            for e in emitted:
                texts[e.row] += e.tokens
            metrics.count(emitted)
            yield emitted
            if self._stream is not this:
                raise RuntimeError(
                    "stream: expected the session's latest, got one that a newer one ended"
                )

    def _reuse_cache(self, texts: list[list[int]], capacity: int) -> TreeCache:
        """Keep the cached tokens that a single prompt shares with the session's text, or begin anew."""
        cache = self._cache
        if cache is not None and len(texts) == len(self._texts) == 1 and capacity <= cache.capacity:
            known, text = self._texts[0], texts[0]
            # The last token of a prompt is always read again: its logits are wanted.
            most = min(cache.host_lengths[0], len(known), len(text) - 1)
            shared = next((i for i in range(most) if known[i] != text[i]), most)
            cache.set_lengths([shared])
            self._texts = [known[:shared]]  # all that still holds should prefill be interrupted
            return cache
        if len(texts) == 1:  # a conversation goes on: room to grow without reading everything again
            capacity = max(capacity, min(2 * capacity, self.target.position_limit))
        self._texts = []
        self._cache = self.target.new_cache(
            rows=len(texts), capacity=capacity, tree_capacity=self.max_nodes
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


def end_tokens(source: GenerationConfig | int | Sequence[int]) -> list[int]:
    """List the tokens that end a text: those of a generation config, or as they are given."""
    ids = source.eos_token_id if isinstance(source, GenerationConfig) else source
    return [ids] if isinstance(ids, int) else list(ids or [])


def check_generation_config(config: GenerationConfig) -> None:
    """Raise ValueError where a model's own settings change what greedy generation picks."""
    for name, harmless in ALTERS_GREEDY_TEXT.items():
        value = getattr(config, name, None)
        if value is not None and value not in harmless:
            raise ValueError(
                f"generation_config: expected {name} to be None, which is all that is supported so far, got {value}"
            )


def generate(
    model: PreTrainedModel | Target,
    input_ids: Tensor | Sequence[Tensor],
    drafter: Drafter | str = "best",
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    max_nodes: int = MAX_NODES,
) -> Tensor:
    """Write the text that `model.generate(..., do_sample=False)` writes, in fewer passes.

    A model that is passed as it is stays as it is; `load_target(model, pack=True)` makes one faster on a CPU.

    Args:
        model: a Hugging Face causal language model in evaluation mode, or what `load_target` made of one; the
            latter saves the load-time checks of every call.
        input_ids: `[B, L]` int64 on the model's device, or B tensors `[L_b]`.
        drafter: a drafter, or a name as in `load_drafter`; never changes the text.
        attention_mask: `[B, L]`, 0 at padding on either side; None where nothing is padded.
        max_new_tokens: most new tokens per row.
        eos_token_id: tokens after which a row ends; None for those of the model's generation config.
        pad_token_id: fills ended rows; None for the generation config's, or the first end-of-text token.
        max_nodes: most nodes verified per row and round, 1 to 256.

    Returns:
        `[B, L + T]` int64, the input followed by up to T new tokens, as the library returns it.

    Raises:
        ValueError: if an argument is out of range, rows live on different devices, the model is not supported, or its
            generation config asks for something that changes greedy text, such as a repetition penalty.
    """
    target = model if isinstance(model, Target) else load_target(model)
    check_generation_config(target.model.generation_config)
    if not isinstance(input_ids, Tensor):
        if attention_mask is not None:
            raise ValueError(
                "attention_mask: expected none beside a list of unpadded rows, got one"
            )
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

    ends = end_tokens(target.model.generation_config if eos_token_id is None else eos_token_id)
    pad = target.model.generation_config.pad_token_id if pad_token_id is None else pad_token_id
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
