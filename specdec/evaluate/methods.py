"""The methods that can be compared: specdec with any drafter, and transformers' generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ..costs.table import Costs
from ..drafters import Drafter, load_drafter
from ..metrics import Metrics
from ..model.target import Target
from ..session import Session
from .method_names import TRANSFORMERS, TRANSFORMERS_LOOKUP

# The value that transformers' documentation suggests for prompt lookup.
PROMPT_LOOKUP_TOKENS = 10
# Settings that change transformers' greedy text, and their values without effect.
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


class Written(NamedTuple):
    """A method's answer to one prompt, and its time."""

    tokens: list[int]
    prefill_seconds: float
    """Seconds until the first token."""
    decode_seconds: float
    metrics: Metrics | None
    """None for transformers' methods, which have none."""


def check_generation_config(config: GenerationConfig) -> None:
    """Raise ValueError if a model's generation config changes greedy text."""
    for name, harmless in ALTERS_GREEDY_TEXT.items():
        value = getattr(config, name, None)
        if value is not None and value not in harmless:
            raise ValueError(
                f"generation_config: expected {name} to be None for comparing greedy text, got {value}"
            )


class Runner:
    """Runs any method on one model; transformers' methods on an unmodified copy."""

    def __init__(
        self,
        target: Target,
        stock: PreTrainedModel | None,
        *,
        eos: list[int],
        max_nodes: int | None = None,
        costs: Costs | None = None,
    ) -> None:
        """Create a runner.

        Args:
            target: the target, for specdec's methods.
            stock: the same model loaded by transformers; None if its methods are not run.
            eos: tokens that end a text.
            max_nodes: as in `Session`.
            costs: as in `Session`.

        Raises:
            ValueError: if the model's generation config changes greedy text.
        """
        check_generation_config(target.model.generation_config)
        self.target, self.stock = target, stock
        self.eos, self.max_nodes, self.costs = eos, max_nodes, costs
        self._drafters: dict[str, Drafter] = {}

    def write(
        self, method: str, prompt: list[int], max_new_tokens: int, metrics: Metrics | None = None
    ) -> Written:
        """Generate up to `max_new_tokens` tokens after `prompt`, fewer if the model's positions end.

        `metrics` receives counts and times of specdec's methods; None creates a new one.
        """
        # Transformers' methods would continue beyond the positions.
        max_new_tokens = min(max_new_tokens, self.target.position_limit - len(prompt))
        if method in (TRANSFORMERS, TRANSFORMERS_LOOKUP):
            return self._library(method, prompt, max_new_tokens)
        drafter = self._drafter(method)
        began = time.perf_counter()
        session = Session(self.target, drafter, max_nodes=self.max_nodes, costs=self.costs)
        generation = session.generate(
            [prompt], max_new_tokens=max_new_tokens, eos_token_ids=self.eos, metrics=metrics
        )
        total = time.perf_counter() - began
        prefill = generation.metrics.prefill_seconds
        return Written(generation.tokens[0], prefill, total - prefill, generation.metrics)

    def write_list(
        self,
        method: str,
        prompts: list[list[int]],
        max_new_tokens: int,
        rows_at_once: int,
        ended: Callable[[int], None] = lambda row: None,
    ) -> list[Written]:
        """Run a specdec method on all prompts as one list.

        Args:
            method: name of a specdec method.
            prompts: token ids per prompt.
            max_new_tokens: most new tokens per text.
            rows_at_once: most rows generated at the same time.
            ended: called with the index of each text that ends.

        Returns:
            Per text its tokens, counts and an equal share of the list's times.
        """
        session = Session(
            self.target, self._drafter(method), max_nodes=self.max_nodes, costs=self.costs
        )
        whole, each = Metrics(), [Metrics() for _ in prompts]
        texts: list[list[int]] = [[] for _ in prompts]
        began = time.perf_counter()
        for emitted in session.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=self.eos,
            rows_at_once=rows_at_once,
            metrics=whole,
        ):
            for e in emitted:
                texts[e.row] += e.tokens
                each[e.row].count([e])
                if e.finished:
                    ended(e.row)
        share = 1 / len(prompts)
        total = (time.perf_counter() - began) * share
        prefill = whole.prefill_seconds * share
        for metrics in each:
            metrics.seconds = {stage: seconds * share for stage, seconds in whole.seconds.items()}
        return [
            Written(tokens, prefill, total - prefill, metrics)
            for tokens, metrics in zip(texts, each, strict=True)
        ]

    def _drafter(self, name: str) -> Drafter:
        """Load a drafter once, so that no prompt's time includes loading."""
        if name not in self._drafters:
            self._drafters[name] = load_drafter(name, self.target)
        return self._drafters[name]

    def _library(self, method: str, prompt: list[int], max_new_tokens: int) -> Written:
        assert self.stock is not None
        ids = torch.tensor([prompt], device=self.stock.device)
        options: dict[str, Any] = {}
        if method == TRANSFORMERS_LOOKUP:
            options["prompt_lookup_num_tokens"] = PROMPT_LOOKUP_TOKENS
        clock = _FirstToken()
        began = time.perf_counter()
        with torch.inference_mode():
            out = self.stock.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.eos or None,
                pad_token_id=self.eos[0] if self.eos else 0,
                streamer=clock,
                **options,
            )
        ended = time.perf_counter()
        first = clock.first or ended
        return Written(out[0, len(prompt) :].tolist(), first - began, ended - first, None)


class _FirstToken(BaseStreamer):
    """A streamer that records the time of the first new token; transformers passes the prompt first."""

    def __init__(self) -> None:
        self.puts = 0
        self.first: float | None = None

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1
        if self.puts == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        pass
