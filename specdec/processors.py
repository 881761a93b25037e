"""The library's logits processors, for rows that are unpadded and go on at a pace of their own."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

# What counts a batch's columns, padding included: less by a row's padding where that is stripped.
COUNTED = {
    lp.MinLengthLogitsProcessor: "min_length",
    lp.MinNewTokensLengthLogitsProcessor: "prompt_length_to_skip",
    lp.ForcedEOSTokenLogitsProcessor: "max_length",
    lp.ExponentialDecayLengthPenalty: "regulation_start",
    lp.SuppressTokensAtBeginLogitsProcessor: "begin_index",
}
# What draws can do themselves, in the library's order.
FUSED = (lp.TemperatureLogitsWarper, lp.TopKLogitsWarper, lp.TopPLogitsWarper)


def processors_of_rows(
    processors: LogitsProcessorList, prompts: list[Tensor], padding: list[int]
) -> list[LogitsProcessorList]:
    """Give each row what plain generation of it alone, unpadded, would have.

    A processor of the caller's is the same object for all rows, and sees one row at a time.

    Args:
        processors: as `model.generate` prepares them for a batch.
        prompts: per row `[1, L]` int64, unpadded.
        padding: per row, columns of padding in the batch.

    Raises:
        ValueError: for a processor that runs the model itself, by name.
    """
    for processor in processors:
        if isinstance(processor, lp.UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ValueError(
                "guidance_scale: expected None or 1, got a second pass of the model per token"
            )
    return [
        LogitsProcessorList(_of_row(p, row, prompt, pad) for p in processors)
        for row, (prompt, pad) in enumerate(zip(prompts, padding, strict=True))
    ]


def _of_row(processor: Any, row: int, prompt: Tensor, padding: int) -> Any:
    if not of_library(processor):
        return processor
    if isinstance(processor, lp.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return lp.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    if isinstance(processor, lp.EncoderRepetitionPenaltyLogitsProcessor):
        own = copy.copy(processor)
        own.encoder_input_ids = prompt
        return own
    if isinstance(processor, lp.EncoderNoRepeatNGramLogitsProcessor):
        return lp.EncoderNoRepeatNGramLogitsProcessor(processor.ngram_size, prompt)
    own = copy.deepcopy(processor)  # some keep what they have seen
    if isinstance(own, lp.RepetitionPenaltyLogitsProcessor):
        own.prompt_ignore_length = None  # it was padding
    for kind, name in COUNTED.items():
        if isinstance(own, kind):
            setattr(own, name, getattr(own, name) - padding)
    return own


def of_library(processor: Any) -> bool:
    """Tell whether a processor is the library's: its ways are known."""
    return type(processor).__module__.startswith("transformers.")


def fused_settings(processors: LogitsProcessorList) -> dict[str, Any] | None:
    """Return temperature, top-k and top-p if the processors are these alone, in this order."""
    kinds = [type(p) for p in processors]
    if kinds != [kind for kind in FUSED if kind in kinds]:
        return None
    found: dict[str, Any] = {}
    for p in processors:
        if isinstance(p, lp.TemperatureLogitsWarper):
            found["temperature"] = p.temperature
        elif p.filter_value != -float("inf"):
            return None
        elif isinstance(p, lp.TopKLogitsWarper):
            found["top_k"] = p.top_k
        elif p.min_tokens_to_keep != 1:
            return None
        else:
            found["top_p"] = p.top_p
    return found
