"""What `model.generate` does, in fewer passes: the same arguments, the same result, or an error that names what cannot be.

`generate` hands everything to the library, which prepares configuration, processors and criteria as always, and calls
`method` to decode.
"""

from __future__ import annotations

import copy
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
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .cache import TreeCache
from .drafters import Drafter, load_drafter
from .loading import load_target
from .processors import fused_settings, processors_of_rows
from .sampling import Greedy, Picker, Recorded, Walk, new_sampling, sampler
from .session import Session
from .state import Stops
from .streaming import Columns
from .target import Target

# What changes more than the text.
REFUSED = ("cache_implementation", "output_attentions", "output_hidden_states")
# What the library does not tell methods of.
LOST = ("assistant_model", "custom_generate", "synced_gpus", "negative_prompt_ids", "inputs_embeds")
# What its preparation adds.
PREPARED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def generate(
    model: PreTrainedModel | Target,
    input_ids: Tensor | Sequence[Tensor],
    drafter: Drafter | str = "best",
    *,
    streamer: BaseStreamer | None = None,
    seed: int | None = None,
    streams: Sequence[int] | None = None,
    max_nodes: int | None = None,
    **generate_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Write the text that `model.generate(input_ids, **generate_kwargs)` writes, in fewer passes.

    Greedy text is the library's own. Sampled text is drawn from the library's own distribution, by noise that depends on seed, stream
    and position alone: the same with any drafter, any `max_nodes`, any other rows beside it.

    Args:
        model: a Hugging Face causal language model in evaluation mode, or what `load_target` made of one; the
            latter saves the load-time checks of every call.
        input_ids: `[B, L]` int64 on the model's device, or B tensors `[L_b]`.
        drafter: a drafter, or a name as in `load_drafter`; never changes the text.
        streamer: gets the prompts and then each token as it is kept, as from the library.
        seed: of the noise, 0 to 2**64 - 1; None for one from torch's default generator.
        streams: one number per row, 0 to 2**32 - 1, which tell rows of one seed apart; None for 0, 1, 2, …
        max_nodes: most nodes verified per row and round, 1 to 256; None as in `Session`.
        generate_kwargs: as the library's: `attention_mask` (0 at padding, on either side), `generation_config`,
            `logits_processor`, `stopping_criteria`, `max_new_tokens`, `do_sample`, `temperature`, … (docs/generate.md).
            `past_key_values` of an earlier result, with `return_dict_in_generate`, goes on where its text ended.

    Returns:
        `[B * num_return_sequences, L + T]` int64, the input followed by up to T new tokens, or the library's output object.

    Raises:
        ValueError: if an argument is out of range or cannot be honoured, or the model is not supported.
    """
    target = model if isinstance(model, Target) else load_target(model)
    ids = input_ids
    if not isinstance(ids, Tensor):
        if generate_kwargs.get("attention_mask") is not None:
            raise ValueError(
                "attention_mask: expected none beside a list of unpadded rows, got one"
            )
        ids, generate_kwargs["attention_mask"] = _stack(list(ids))
    _check_inputs(target, ids, generate_kwargs.get("attention_mask"))
    for name in LOST:
        _refuse(name, generate_kwargs.get(name))
    _take_stop_strings(target, generate_kwargs)
    return target.model.generate(
        ids,
        custom_generate=method,
        target=target,
        drafter=drafter,
        token_streamer=streamer,
        seed=seed,
        streams=streams,
        max_nodes=max_nodes,
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
    drafter: Drafter | str = "best",
    token_streamer: BaseStreamer | None = None,
    seed: int | None = None,
    streams: Sequence[int] | None = None,
    max_nodes: int | None = None,
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
        token_streamer: as `streamer` in `generate`; the library keeps that name to itself.
        seed: as in `generate`.
        streams: as in `generate`.
        max_nodes: as in `generate`.
        model_kwargs: the mask, and what else was prepared.

    Raises:
        ValueError: as in `generate`.
    """
    config = generation_config
    target = target or load_target(model)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    _check_request(config, synced_gpus, mask, model_kwargs)
    rows, width = input_ids.shape
    copies = config.num_return_sequences
    prompts = [ids[keep.bool()] for ids, keep in zip(input_ids, mask, strict=True)]
    padding = [width - len(prompt) for prompt in prompts]

    recorded: list[list[Recorded]] | None = None
    if config.return_dict_in_generate and (config.output_scores or config.output_logits):
        recorded = [[] for _ in prompts]
    sampling = None
    if config.do_sample:
        streams = _streams(streams, rows)
        sampling = new_sampling(seed, streams, target.device, temperature=config.temperature)
    picker: Picker
    settings = fused_settings(logits_processor)
    if recorded is None and sampling is None and not logits_processor:
        picker = Greedy()
    elif recorded is None and sampling is not None and settings is not None:
        picker = sampler(replace(sampling, **settings), target)
    else:
        picker = Walk(
            sampling,
            processors_of_rows(logits_processor, [p[None] for p in prompts], padding),
            torch.tensor(_ends(stopping_criteria), dtype=torch.int64, device=target.device),
            recorded,
        )
    past = model_kwargs.get("past_key_values")
    session = Session(
        target,
        _drafter(target, drafter),
        max_nodes=max_nodes,
        cache=past if isinstance(past, TreeCache) else None,
    )
    columns = Columns(rows, _pad(config), token_streamer)
    if token_streamer is not None:
        token_streamer.put(input_ids.cpu())
    scores = None if recorded is None or not config.output_scores else recorded
    for emitted in session.stream(
        [prompt.tolist() for prompt in prompts[::copies]],
        max_new_tokens=_longest(config, stopping_criteria) - width,
        eos_token_ids=_ends(stopping_criteria),
        picker=picker,
        stops=_stops(stopping_criteria, prompts, scores),
        copies=copies,
    ):
        columns.add(emitted)
    new = columns.end()
    sequences = torch.cat([input_ids, new.to(input_ids.device)], 1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=columns.recorded(recorded, "scores") if config.output_scores else None,
        logits=columns.recorded(recorded, "logits") if config.output_logits else None,
        past_key_values=session.cache,
    )


def _check_inputs(target: Target, ids: Tensor, mask: Tensor | None) -> None:
    if ids.ndim != 2:
        raise ValueError(f"input_ids: expected shape [B, L], got {list(ids.shape)}")
    if ids.device != target.device:
        raise ValueError(f"input_ids: expected device {target.device}, got {ids.device}")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask: expected shape {list(ids.shape)}, got {list(mask.shape)}"
        )


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


def _take_stop_strings(target: Target, options: dict[str, Any]) -> None:
    """Make them a criterion: the library forgets the tokenizer that it needs for its own on the way to a method."""
    tokenizer = options.pop("tokenizer", None) or target.tokenizer
    strings = options.pop("stop_strings", None)
    config = options.get("generation_config")
    if config is not None and config.stop_strings is not None:
        options["generation_config"] = config = copy.deepcopy(config)
        strings, config.stop_strings = strings or config.stop_strings, None
    if strings is None:
        return
    if tokenizer is None:
        raise ValueError("tokenizer: expected one, for stop_strings, got none")
    others = options.get("stopping_criteria") or []
    options["stopping_criteria"] = StoppingCriteriaList(
        [*others, sc.StopStringCriteria(tokenizer, strings)]
    )


def _check_request(
    config: GenerationConfig, synced_gpus: bool, mask: Tensor, model_kwargs: dict[str, Any]
) -> None:
    """Raise ValueError for what cannot be honoured, by name."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"generation_config: expected greedy search or sampling, got {mode.value}")
    given = {"synced_gpus": synced_gpus, "use_cache": not config.use_cache}
    given |= {name: getattr(config, name) for name in REFUSED}
    given |= {name: value for name, value in model_kwargs.items() if name not in PREPARED}
    for name, value in given.items():
        _refuse(name, value)
    past = model_kwargs.get("past_key_values")
    if past is not None and not isinstance(past, TreeCache) and past.get_seq_length() > 0:
        raise ValueError(
            f"past_key_values: expected those of an earlier result of specdec, got {type(past).__name__}"
        )
    positions, expected = model_kwargs.get("position_ids"), mask.long().cumsum(-1) - 1
    if positions is not None and not torch.equal(
        positions.expand_as(expected)[mask.bool()], expected[mask.bool()]
    ):
        raise ValueError("position_ids: expected those of the mask, got others")


def _refuse(name: str, value: Any) -> None:
    if value is not None and value is not False:
        raise ValueError(f"{name}: expected it to be left as it is, got {str(value)[:80]!r}")


def _streams(streams: Sequence[int] | None, rows: int) -> Sequence[int]:
    if streams is None:
        return range(rows)
    if len(streams) != rows:
        raise ValueError(f"streams: expected one per row, {rows}, got {list(streams)}")
    return streams


def _drafter(target: Target, drafter: Drafter | str) -> Drafter:
    """Load a drafter by its name once per target."""
    if not isinstance(drafter, str):
        return drafter
    if drafter not in target.drafters:
        target.drafters[drafter] = load_drafter(drafter, target)
    found: Drafter = target.drafters[drafter]
    return found


def _longest(config: GenerationConfig, criteria: StoppingCriteriaList) -> int:
    """Most columns of the result."""
    lengths = [c.max_length for c in criteria if isinstance(c, sc.MaxLengthCriteria)]
    longest: int = min([config.max_length, *lengths])
    return longest


def _ends(criteria: StoppingCriteriaList) -> list[int]:
    ids = [c.eos_token_id.tolist() for c in criteria if isinstance(c, sc.EosTokenCriteria)]
    return sorted({token for tokens in ids for token in tokens})


def _stops(
    criteria: StoppingCriteriaList, prompts: list[Tensor], scores: list[list[Recorded]] | None
) -> Stops | None:
    """Ask those criteria that we do not know, row by row and token by token."""
    others = [c for c in criteria if not isinstance(c, sc.MaxLengthCriteria | sc.EosTokenCriteria)]
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
    pad: Tensor | None = config._pad_token_tensor
    return 0 if pad is None else int(pad.item())
