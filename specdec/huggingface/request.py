"""What a call of `generate` asks for: brought into one form, or refused with an error that names it."""

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

# Settings that change more than the text, or the prompt, or how an assistant ends.
REFUSED = (
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
    "token_healing",
    "is_assistant",
)
# What the library does not tell methods of.
LOST = (
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "synced_gpus",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "inputs_embeds",
)
# What its preparation adds to text, beside empty values: bench/releases/prepared.py records it for every family in the tests.
PREPARED = {"use_cache": True, "logits_to_keep": 1}
HONOURED = {"attention_mask", "position_ids", *CACHE_NAMES}


def take_ids(
    input_ids: Tensor | Sequence[Tensor | Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return ids `[B, L]` int64 and, where rows of any lengths were given, the mask of their padding on the left."""
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
    """Raise ValueError unless these are ids `[B, L]` on the target's device and a mask of that shape."""
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
    """Raise ValueError for what the library would act on itself, or keep from a method."""
    for name in LOST:
        _refuse(name, options.get(name))
    for name in REFUSED:
        _refuse(name, _setting(target, options, name))
    # The rest is for the model's forward; what encoders of pictures know, the library takes out on the way.
    settings = {"tokenizer", *inspect.signature(GenerationMixin.generate).parameters}
    settings |= {name for name in options if hasattr(target.model.generation_config, name)}
    _refuse_others({name: value for name, value in options.items() if name not in settings})


def take_cache(target: Target, options: dict[str, Any]) -> None:
    """Bring the cache of an earlier result under the library's name for it; raises as `find_cache`."""
    given = {name: options.pop(name) for name in CACHE_NAMES if name in options}
    given = {name: past for name, past in given.items() if past is not None}
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: expected one of them, got both")
    for name, past in given.items():
        _check_cache(name, past, target)
        options[CACHE_NAME] = past


def find_cache(model_kwargs: dict[str, Any], target: Target) -> TreeCache | None:
    """Return the cache of an earlier result, if one was given.

    Raises:
        ValueError: if a cache of another kind was given, or one for another target.
    """
    past = model_kwargs.get(CACHE_NAME)
    if past is None or (
        isinstance(past, DynamicCache)  # what the library prepares
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
            f"{name}: expected that of an earlier result of specdec, got {type(past).__name__}"
        )
    if past.made_for[0] is not target:
        raise ValueError(
            f"{name}: expected that of an earlier result with this target, got another target's; "
            "a plain model becomes a new one at every call: make it once with load_target, and pass that"
        )


def take_stop_strings(target: Target, options: dict[str, Any]) -> None:
    """Make them a criterion: the library forgets the tokenizer that it needs for its own on the way to a method."""
    tokenizer = options.pop("tokenizer", None) or target.tokenizer
    strings = _setting(target, options, "stop_strings")
    if strings is None:
        return
    if tokenizer is None:
        raise ValueError("tokenizer: expected one, for stop_strings, got none")
    options["stop_strings"] = None  # goes before what a configuration says
    others = options.get("stopping_criteria") or []
    options["stopping_criteria"] = StoppingCriteriaList(
        [*others, sc.StopStringCriteria(tokenizer, strings)]
    )


def _setting(target: Target, options: dict[str, Any], name: str) -> Any:
    """Return what the library will take a setting to be."""
    if name in options:
        return options[name]
    configs = options.get("generation_config"), target.model.generation_config
    values = (getattr(config, name, None) for config in configs)
    value = next((value for value in values if value is not None), None)
    # Models of the first sliding windows come with this one, and the library drops it.
    return None if (name, value) == ("cache_implementation", "hybrid") else value


def check_request(
    config: GenerationConfig,
    synced_gpus: bool,
    mask: Tensor,
    model_kwargs: dict[str, Any],
) -> None:
    """Raise ValueError for what cannot be honoured, by name."""
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
    """Refuse what a model's forward is to be given beside what is honoured or only prepared."""
    for name, value in model_kwargs.items():
        prepared = PREPARED.get(name)
        if name not in HONOURED and not (type(value) is type(prepared) and value == prepared):
            _refuse(name, value)


def _check_positions(positions: Any, mask: Tensor) -> None:
    """Take `[..., R or 1, L]` positions that all are those of the mask: models of pictures have several per token."""
    if positions is None:
        return
    expected = mask.long().cumsum(-1) - 1
    fits = (
        isinstance(positions, Tensor)
        and positions.ndim > 1
        and positions.shape[-2:] in (mask.shape, mask[:1].shape)
    )
    if not fits or not (positions == expected).masked_select(mask.bool()).all():
        raise ValueError("position_ids: expected those of the mask, got others")


def _refuse(name: str, value: Any) -> None:
    if not _says_nothing(value):
        raise ValueError(f"{name}: expected it to be left as it is, got {str(value)[:80]!r}")


def _says_nothing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_says_nothing, value.values()))
    return value is None or value is False or (isinstance(value, (Sequence, Set)) and not value)
