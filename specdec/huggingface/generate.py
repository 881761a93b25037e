"""What `model.generate` does, in fewer passes: the same arguments, the same result, or an error that names what cannot be.

`generate` hands everything to the library, which prepares configuration, processors and criteria as always, and calls
`method` to decode.
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
    """The library's output, with the same items, and an attribute that says what drafting did."""

    statistics: Statistics
    """Per text of the call: tokens accepted and drafted, rounds, nodes, by drafter; when and why drafting stopped."""


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
    """Write the text that `model.generate(input_ids, **generate_kwargs)` writes, in fewer passes.

    Greedy text is the library's own. Sampled text is drawn from the library's own distribution, by noise that depends on seed, stream
    and position alone: the same with any drafter, any `max_nodes`, any other rows beside it.

    Args:
        model: a Hugging Face causal language model in evaluation mode, or what `load_target` made of one; the
            latter saves the load-time checks of every call.
        input_ids: `[B, L]` integers on the model's device, or B rows of any lengths, each a tensor or a list.
        drafter: a drafter, or a name or folder as in `load_drafter`; never changes the text.
        speculate: False for one token per pass: nothing is drafted.
        streamer: gets the prompts and then each token as it is kept, as from the library.
        seed: of the noise, 0 to 2**64 - 1; None for one from torch's default generator.
        streams: one number per row, 0 to 2**32 - 1, which tell rows of one seed apart; None for 0, 1, 2, …
        max_nodes: most nodes verified per row and round, 1 to 256, or one number per row; None for what pays.
        rows_at_once: most rows written at once; the others wait, and begin as rows end. None for all. A result of rows
            that waited has no cache to go on with.
        on_round: told what the prefill and each round did (`specdec.observer.Round`).
        generate_kwargs: as the library's: `attention_mask` (0 at padding, on either side), `generation_config`,
            `logits_processor`, `stopping_criteria`, `max_new_tokens`, `do_sample`, `temperature`, … (docs/use/generate.md).
            `cache` of an earlier result, with `return_dict_in_generate`, goes on where its text ended; before
            transformers 5.24 it is called `past_key_values`, and both names are taken.

    Returns:
        `[B * num_return_sequences, L + T]` int64, the input followed by up to T new tokens, or the library's output object,
        with what drafting did as `statistics`.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if one is out of range or cannot be honoured, or the model is not supported.
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
        model: given by the library, as what is not named here.
        input_ids: `[R, L]` int64, every prompt as often as sequences are asked for.
        logits_processor: prepared for the batch.
        stopping_criteria: prepared.
        generation_config: prepared.
        synced_gpus: refused.
        target: from `load_target(model)`; None loads and certifies it at every call.
        drafter: as in `generate`.
        speculate: as in `generate`.
        token_streamer: as `streamer` in `generate`; the library keeps that name to itself.
        seed: as in `generate`.
        streams: as in `generate`.
        max_nodes: as in `generate`.
        rows_at_once: as in `generate`.
        on_round: as in `generate`.
        model_kwargs: the mask, and what else was prepared.

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
            f"rows_at_once: expected None or at least the {rows} rows that go on with {CACHE_NAME}, got {rows_at_once}"
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
        # A cache is read on by the drafter that has read it.
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
        # Rows that took turns have left the texts of the last ones alone.
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
    """Load a drafter by its name once per target."""
    if isinstance(drafter, os.PathLike):
        drafter = os.fspath(drafter)
    if not isinstance(drafter, str):
        return drafter
    if drafter not in target.drafters:
        target.drafters[drafter] = load_drafter(drafter, target)
    found: Drafter = target.drafters[drafter]
    return found


def _longest(config: GenerationConfig, criteria: StoppingCriteriaList) -> int:
    """Most columns of the result; a caller's criterion takes the place of the library's."""
    lengths = [c.max_length for c in criteria if type(c) is sc.MaxLengthCriteria]
    longest: int = min(lengths, default=config.max_length)
    return longest


def _ends(criteria: StoppingCriteriaList) -> list[int]:
    ids = [c.eos_token_id.tolist() for c in criteria if type(c) is sc.EosTokenCriteria]
    return sorted({token for tokens in ids for token in tokens})


def _warn_of_positions(
    target: Target, texts: list[list[int]], new: list[list[int]], most: int, ends: list[int]
) -> None:
    """Say which row ended where the model's positions do: the library goes on, into what the model has not learned."""
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
    """Ask those criteria that we do not know, row by row and token by token."""
    others = [c for c in criteria if type(c) not in (sc.MaxLengthCriteria, sc.EosTokenCriteria)]
    if not others:
        return None

    def stop(row: int, ids: Tensor) -> bool:
        known = None
        if scores is not None:
            new = ids.shape[1] - len(prompts[row])
            known = tuple(said.scores[None] for said in scores[row][:new])
        # All are asked, as in the library: some count.
        return any([bool(torch.as_tensor(c(ids, known)).all()) for c in others])  # noqa: C419

    return stop


def _pad(config: GenerationConfig) -> int:
    """Return what stands behind a row's end, as the library does: without a token for it, the first that ends a text."""
    ids = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    return 0 if ids is None else int(torch.as_tensor(ids).flatten()[0])
