"""Checks and normalises the arguments of `generate`; errors name the argument."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin, StoppingCriteriaList
from transformers.generation import stopping_criteria as sc
from transformers.generation.configuration_utils import GenerationMode

from ..model.cache import CACHE_NAME, CACHE_NAMES, TreeCache
from ..model.target import Target

# Unsupported settings: they change other results than the text, the prompt, or an assistant model's stopping.
REFUSED = (
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
    "token_healing",
    "is_assistant",
)
# Arguments that transformers does not pass on to a custom method.
LOST = (
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "synced_gpus",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "inputs_embeds",
)
# Values that transformers' preparation adds for text models, besides empty ones; bench/releases/prepared.py records them.
PREPARED = {"use_cache": True, "logits_to_keep": 1}
HONOURED = {"attention_mask", "position_ids", *CACHE_NAMES}


def take_ids(
    input_ids: Tensor | Sequence[Tensor | Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return ids `[B, L]` int64 and, for rows of different lengths, the mask of their left padding."""
    if isinstance(input_ids, Tensor):
        _check_integers(input_ids)
        return input_ids.long(), None
    if isinstance(input_ids, Mapping):
        raise TypeError(
            f"input_ids: expected a tensor or a list of rows, got {type(input_ids).__name__}; "
            "unpack it: generate(model, **inputs)"
        )
    if isinstance(input_ids, str) or not isinstance(input_ids, Sequence):
        raise TypeError(
            f"input_ids: expected a tensor or a list of rows, got {type(input_ids).__name__}"
        )
    rows = [_take_row(row, at, device) for at, row in enumerate(input_ids)]
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


def _take_row(row: Tensor | Sequence[int], at: int, device: torch.device) -> Tensor:
    try:
        ids = row if isinstance(row, Tensor) else torch.tensor(row, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"input_ids: expected integers, got {str(row)[:80]!r} in row {at}"
        ) from error
    if ids.ndim != 1:
        raise ValueError(f"input_ids: expected a list of rows, got {str(row)[:80]} as row {at}")
    if not len(ids):
        raise ValueError(f"input_ids: expected at least one token, got none in row {at}")
    _check_integers(ids)
    return ids.long()


def _check_integers(ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"input_ids: expected integers, got {ids.dtype}")


def check_inputs(target: Target, ids: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError or TypeError unless `ids` is `[B, L]` on the target's device and `mask` has that shape."""
    if ids.ndim != 2:
        raise ValueError(f"input_ids: expected shape [B, L], got {list(ids.shape)}")
    if not ids.numel():
        raise ValueError(f"input_ids: expected at least one token, got shape {list(ids.shape)}")
    if ids.device != target.device:
        raise ValueError(f"input_ids: expected device {target.device}, got {ids.device}")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask: expected a tensor, got {type(mask).__name__}")
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask: expected shape {list(ids.shape)}, got {list(mask.shape)}"
        )


def check_options(target: Target, options: dict[str, Any]) -> None:
    """Raise ValueError for options that transformers would act on itself or not pass on."""
    for name in LOST:
        _refuse(name, options.get(name))
    for name in REFUSED:
        _refuse(name, _setting(target, options, name))
    # All others are arguments of the model's forward, except those that transformers removes for image encoders.
    settings = {"tokenizer", *inspect.signature(GenerationMixin.generate).parameters}
    settings |= {name for name in options if hasattr(target.model.generation_config, name)}
    _refuse_others({name: value for name, value in options.items() if name not in settings})


def take_cache(target: Target, options: dict[str, Any]) -> None:
    """Rename the cache of an earlier result to transformers' current name; errors as in `find_cache`."""
    given = {name: options.pop(name) for name in CACHE_NAMES if name in options}
    given = {name: past for name, past in given.items() if past is not None}
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: expected one of the two, got both")
    for name, past in given.items():
        _check_cache(name, past, target)
        options[CACHE_NAME] = past


def find_cache(model_kwargs: dict[str, Any], target: Target) -> TreeCache | None:
    """Return the cache of an earlier result, if one was given.

    Raises:
        ValueError: if the cache is of another class or was made for another target.
    """
    past = model_kwargs.get(CACHE_NAME)
    if past is None or (
        isinstance(past, DynamicCache)  # an empty one that transformers prepares
        and not getattr(past, "_is_user_defined", False)
        and past.get_seq_length() == 0
    ):
        return None
    _check_cache(CACHE_NAME, past, target)
    found: TreeCache = past
    return found


def _check_cache(name: str, past: Any, target: Target) -> None:
    if not isinstance(past, TreeCache):
        raise ValueError(
            f"{name}: expected the cache of an earlier specdec result, got {type(past).__name__}"
        )
    if past.made_for[0] is not target:
        raise ValueError(
            f"{name}: expected the cache of an earlier result with this target, got another target's; a plain model "
            "is loaded as a new target at every call: call load_target once, and pass the target"
        )


def take_stop_strings(target: Target, options: dict[str, Any]) -> None:
    """Turn stop strings into a criterion: transformers does not pass the tokenizer on to a custom method."""
    tokenizer = options.pop("tokenizer", None) or target.tokenizer
    strings = _setting(target, options, "stop_strings")
    if strings is None:
        return
    if tokenizer is None:
        raise ValueError("tokenizer: expected one for stop_strings, got none")
    options["stop_strings"] = None  # overrides the generation config
    others = options.get("stopping_criteria") or []
    options["stopping_criteria"] = StoppingCriteriaList(
        [*others, sc.StopStringCriteria(tokenizer, strings)]
    )


def _setting(target: Target, options: dict[str, Any], name: str) -> Any:
    """Return the value of a setting: of the options, else of the first config that has it."""
    if name in options:
        return options[name]
    configs = options.get("generation_config"), target.model.generation_config
    values = (getattr(config, name, None) for config in configs)
    value = next((value for value in values if value is not None), None)
    # Configs of early sliding-window models have "hybrid", and transformers ignores it.
    return None if (name, value) == ("cache_implementation", "hybrid") else value


def check_request(
    config: GenerationConfig,
    synced_gpus: bool,
    mask: Tensor,
    model_kwargs: dict[str, Any],
) -> None:
    """Raise ValueError, naming the argument, for an unsupported one."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"generation_config: expected greedy search or sampling, got {mode.value}")
    if not config.use_cache:
        raise ValueError(f"use_cache: expected True, got {config.use_cache}")
    given: dict[str, Any] = {"synced_gpus": synced_gpus}
    given |= {name: getattr(config, name, None) for name in REFUSED}
    for name, value in given.items():
        _refuse(name, value)
    _refuse_others(model_kwargs)
    _check_positions(model_kwargs.get("position_ids"), mask)


def _refuse_others(model_kwargs: dict[str, Any]) -> None:
    """Raise ValueError for arguments of the model's forward that are neither supported nor added by transformers."""
    for name, value in model_kwargs.items():
        prepared = PREPARED.get(name)
        if name not in HONOURED and not (type(value) is type(prepared) and value == prepared):
            _refuse(name, value)


def _check_positions(positions: Any, mask: Tensor) -> None:
    """Raise ValueError unless positions `[..., R or 1, L]` are those of the mask; vision models have several per token."""
    if positions is None:
        return
    expected = mask.long().cumsum(-1) - 1
    fits = (
        isinstance(positions, Tensor)
        and positions.ndim > 1
        and positions.shape[-2:] in (mask.shape, mask[:1].shape)
    )
    if not fits or not (positions == expected).masked_select(mask.bool()).all():
        raise ValueError("position_ids: expected those that follow from attention_mask, got others")


def _refuse(name: str, value: Any) -> None:
    if not _says_nothing(value):
        raise ValueError(
            f"{name}: expected no value, as it is not supported, got {str(value)[:80]!r}"
        )


def _says_nothing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_says_nothing, value.values()))
    return value is None or value is False or (isinstance(value, (Sequence, Set)) and not value)
