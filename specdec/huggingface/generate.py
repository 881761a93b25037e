"""`generate`: speculative decoding with the arguments and results of transformers' `model.generate`.

Unsupported arguments raise an error that names them. `generate` calls `model.generate`, which prepares the
configuration, logits processors and stopping criteria as usual and then calls `method` to decode.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import stopping_criteria as sc
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..drafters import Drafter, load_drafter
from ..load import load_target
from ..model.cache import CACHE_NAME
from ..model.target import Target
from ..observer import OnRound
from ..pickers import Greedy, PathPicker, Picker, Recorded, sampler
from ..processors import fused_settings, processors_of_rows
from ..prompts import check_texts
from ..row_statistics import Statistics
from ..sampling import new_sampling
from ..session import Session
from ..state import Stops
from .request import (
    check_inputs,
    check_options,
    check_request,
    find_cache,
    take_cache,
    take_ids,
    take_stop_strings,
)
from .streaming import Columns


class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """`GenerateDecoderOnlyOutput` with the attribute `statistics`."""

    statistics: Statistics
    """Per text: tokens accepted and drafted, rounds and nodes, in total and by drafter; when and why drafting paused."""


def generate(
    model: PreTrainedModel | Target,
    input_ids: Tensor | Sequence[Tensor | Sequence[int]],
    drafter: Drafter | str | os.PathLike[str] = "auto",
    *,
    speculate: bool = True,
    streamer: BaseStreamer | None = None,
    seed: int | None = None,
    streams: Sequence[int] | None = None,
    max_nodes: int | Sequence[int] | None = None,
    rows_at_once: int | None = None,
    on_round: OnRound | None = None,
    **generate_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate the text of `model.generate(input_ids, **generate_kwargs)` in fewer forward passes.

    Greedy text equals transformers'. Sampled text has transformers' distribution; its noise depends on seed, stream
    and position only, so it does not change with the drafter, `max_nodes` or the other rows of the batch.

    Args:
        model: a Hugging Face causal language model in evaluation mode, or a target from `load_target`. A plain model
            is checked at every call, a target only once, when it is loaded.
        input_ids: `[B, L]` integers on the model's device, or B rows of any lengths, each a tensor or a list.
        drafter: a drafter, or a name or folder as in `load_drafter`; never changes the text.
        speculate: False decodes one token per pass, without drafting.
        streamer: receives the prompts and then each accepted token, as in transformers.
        seed: seed of the sampling noise, 0 to 2**64 - 1; None draws one from torch's default generator.
        streams: one number per row, 0 to 2**32 - 1: rows with the same seed and another stream get other noise. None
            for 0, 1, 2, …
        max_nodes: most tree nodes verified per row and round, 1 to 256, or one number per row; None takes the limit
            from the cost table.
        rows_at_once: most rows generated at the same time; the others wait and start as rows end. None for all. If
            rows waited, the result has no cache to continue from.
        on_round: called with a `specdec.observer.Round` after the prefill and each round.
        generate_kwargs: as in transformers: `attention_mask` (0 at padding, on either side), `generation_config`,
            `logits_processor`, `stopping_criteria`, `max_new_tokens`, `do_sample`, `temperature`, … (docs/use/generate.md).
            `cache` of an earlier result (from `return_dict_in_generate`) continues its text; before transformers 5.24
            it is called `past_key_values`, and both names are accepted.

    Returns:
        `[B * num_return_sequences, L + T]` int64: the input followed by up to T new tokens. With
        `return_dict_in_generate`, a `SpeculativeOutput`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range or not supported, or the model is not supported.
    """
    target = model if isinstance(model, Target) else load_target(model)
    ids, padding = take_ids(input_ids, target.device)
    if padding is not None:
        if generate_kwargs.get("attention_mask") is not None:
            raise ValueError(
                "attention_mask: expected none beside a list of unpadded rows, got one"
            )
        generate_kwargs["attention_mask"] = padding
    check_inputs(target, ids, generate_kwargs.get("attention_mask"))
    check_options(target, generate_kwargs)
    take_cache(target, generate_kwargs)
    take_stop_strings(target, generate_kwargs)
    return target.model.generate(
        ids,
        custom_generate=method,
        target=target,
        drafter=drafter,
        speculate=speculate,
        token_streamer=streamer,
        seed=seed,
        streams=streams,
        max_nodes=max_nodes,
        rows_at_once=rows_at_once,
        on_round=on_round,
        **generate_kwargs,
    )


@torch.no_grad()
def method(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    *,
    target: Target | None = None,
    drafter: Drafter | str | os.PathLike[str] = "auto",
    speculate: bool = True,
    token_streamer: BaseStreamer | None = None,
    seed: int | None = None,
    streams: Sequence[int] | None = None,
    max_nodes: int | Sequence[int] | None = None,
    rows_at_once: int | None = None,
    on_round: OnRound | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode for `model.generate(..., custom_generate=specdec.method)`, also from a pipeline.

    Args:
        model: the model; passed by transformers, as the arguments up to `synced_gpus`.
        input_ids: `[R, L]` int64, every prompt `num_return_sequences` times.
        logits_processor: prepared for the batch.
        stopping_criteria: prepared.
        generation_config: prepared.
        synced_gpus: not supported; must be False.
        target: from `load_target(model)`; None loads and checks the model at every call.
        drafter: as in `generate`.
        speculate: as in `generate`.
        token_streamer: `streamer` of `generate`; transformers does not pass on an argument of that name.
        seed: as in `generate`.
        streams: as in `generate`.
        max_nodes: as in `generate`.
        rows_at_once: as in `generate`.
        on_round: as in `generate`.
        model_kwargs: the attention mask and other prepared arguments.

    Raises:
        TypeError: as in `generate`.
        ValueError: as in `generate`.
    """
    config = generation_config
    target = target or load_target(model)
    mask = model_kwargs.get("attention_mask")
    check_inputs(target, input_ids, mask)
    mask = (torch.ones_like(input_ids) if mask is None else mask).bool()
    check_request(config, synced_gpus, mask, model_kwargs)
    past = find_cache(model_kwargs, target)
    rows, width = input_ids.shape
    waits = rows_at_once is not None and rows_at_once < rows
    if waits and past is not None:
        raise ValueError(
            f"rows_at_once: expected None or at least {rows}, the rows that continue {CACHE_NAME}, got {rows_at_once}"
        )
    copies = config.num_return_sequences
    prompts = [ids[keep] for ids, keep in zip(input_ids, mask, strict=True)]
    texts = [prompt.tolist() for prompt in prompts]
    if [] in texts:
        raise ValueError(
            f"attention_mask: expected a token in every row, got none in row {texts.index([])}"
        )
    check_texts(texts, target, "input_ids")
    most = max(1, _longest(config, stopping_criteria) - width)

    recorded: list[list[Recorded]] | None = None
    if config.return_dict_in_generate and (config.output_scores or config.output_logits):
        recorded = [[] for _ in prompts]
    sampling = None
    if config.do_sample:
        streams = _streams(streams, rows)
        temperature = 1.0 if config.temperature is None else config.temperature
        sampling = new_sampling(seed, streams, target.device, temperature=temperature)
    else:
        for name, value in (("seed", seed), ("streams", streams)):
            if value is not None:
                raise ValueError(f"{name}: expected none without do_sample, got {value}")
    picker: Picker
    settings = fused_settings(logits_processor)
    if recorded is None and sampling is None and not logits_processor:
        picker = Greedy()
    elif recorded is None and sampling is not None and settings is not None:
        picker = sampler(replace(sampling, **settings), target)
    else:
        picker = PathPicker(
            sampling,
            processors_of_rows(logits_processor, input_ids, mask),
            torch.tensor(_ends(stopping_criteria), dtype=torch.int64, device=target.device),
            recorded,
        )
    if not speculate:
        # A cache can only be continued with the drafter that filled it.
        drafter, max_nodes = ("plain", None) if past is None else (drafter, 1)
    alike = None if isinstance(max_nodes, Sequence) else max_nodes
    session = Session(target, _drafter(target, drafter), max_nodes=alike, cache=past)
    statistics = Statistics()
    columns = Columns(rows, _pad(config), token_streamer)
    if token_streamer is not None:
        token_streamer.put(input_ids.cpu())
    scores = None if recorded is None or not config.output_scores else recorded
    for emitted in session.stream(
        texts[::copies],
        max_new_tokens=most,
        eos_token_ids=_ends(stopping_criteria),
        picker=picker,
        stops=_stops(stopping_criteria, prompts, scores),
        copies=copies,
        rows_at_once=rows_at_once,
        max_nodes=max_nodes,
        statistics=statistics,
        on_round=on_round,
    ):
        columns.add(emitted)
    new = columns.end()
    _warn_of_positions(target, texts, columns.tokens, most, _ends(stopping_criteria))
    sequences = torch.cat([input_ids, new.to(input_ids.device)], 1)
    if not config.return_dict_in_generate:
        return sequences
    output = SpeculativeOutput(
        sequences=sequences,
        scores=columns.recorded(recorded, "scores") if config.output_scores else None,
        logits=columns.recorded(recorded, "logits") if config.output_logits else None,
        # If rows waited, the cache holds the last rows only.
        **{CACHE_NAME: None if waits else session.cache},
    )
    output.statistics = statistics
    return output


def _streams(streams: Sequence[int] | None, rows: int) -> Sequence[int]:
    if streams is None:
        return range(rows)
    if not hasattr(streams, "__len__") or len(streams) != rows:
        raise ValueError(f"streams: expected one per row, {rows}, got {streams}")
    return streams


def _drafter(target: Target, drafter: Drafter | str | os.PathLike[str]) -> Drafter:
    """Return the drafter; one given by name is loaded once per target."""
    if isinstance(drafter, os.PathLike):
        drafter = os.fspath(drafter)
    if not isinstance(drafter, str):
        return drafter
    if drafter not in target.drafters:
        target.drafters[drafter] = load_drafter(drafter, target)
    found: Drafter = target.drafters[drafter]
    return found


def _longest(config: GenerationConfig, criteria: StoppingCriteriaList) -> int:
    """Return the most columns of the result; a caller's length criterion replaces the config's."""
    lengths = [c.max_length for c in criteria if type(c) is sc.MaxLengthCriteria]
    longest: int = min(lengths, default=config.max_length)
    return longest


def _ends(criteria: StoppingCriteriaList) -> list[int]:
    ids = [c.eos_token_id.tolist() for c in criteria if type(c) is sc.EosTokenCriteria]
    return sorted({token for tokens in ids for token in tokens})


def _warn_of_positions(
    target: Target, texts: list[list[int]], new: list[list[int]], most: int, ends: list[int]
) -> None:
    """Warn about rows that ended at the model's last position; transformers would generate beyond it."""
    limit = target.position_limit
    for row, (text, tokens) in enumerate(zip(texts, new, strict=True)):
        if len(tokens) < most and len(text) + len(tokens) == limit and tokens[-1] not in ends:
            warnings.warn(
                f"max_new_tokens: expected at most {limit - len(text)}, as the model has {limit} positions, "
                f"got {most}; row {row} ends there",
                stacklevel=2,
            )


def _stops(
    criteria: StoppingCriteriaList, prompts: list[Tensor], scores: list[list[Recorded]] | None
) -> Stops | None:
    """Combine the criteria other than length and end of text; they are called for every row and token."""
    others = [c for c in criteria if type(c) not in (sc.MaxLengthCriteria, sc.EosTokenCriteria)]
    if not others:
        return None

    def stop(row: int, ids: Tensor) -> bool:
        known = None
        if scores is not None:
            new = ids.shape[1] - len(prompts[row])
            known = tuple(said.scores[None] for said in scores[row][:new])
        # All are called, as in transformers: some keep counts.
        return any([bool(torch.as_tensor(c(ids, known)).all()) for c in others])  # noqa: C419

    return stop


def _pad(config: GenerationConfig) -> int:
    """Return the padding token; without one, the first end-of-text token, as in transformers."""
    ids = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    return 0 if ids is None else int(torch.as_tensor(ids).flatten()[0])
