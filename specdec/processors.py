"""Adapts transformers' logits processors to single, unpadded rows that advance independently."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

# Attributes that count columns of the padded batch; a row's padding is subtracted.
COUNTED = {
    lp.MinLengthLogitsProcessor: "min_length",
    lp.MinNewTokensLengthLogitsProcessor: "prompt_length_to_skip",
    lp.ForcedEOSTokenLogitsProcessor: "max_length",
    lp.ExponentialDecayLengthPenalty: "regulation_start",
    lp.SuppressTokensAtBeginLogitsProcessor: "begin_index",
}
# Processors that `pick_tokens` applies itself, in transformers' order.
FUSED = (lp.TemperatureLogitsWarper, lp.TopKLogitsWarper, lp.TopPLogitsWarper)


class _Row(NamedTuple):
    """One row of a batch, with and without padding."""

    at: int
    rows: int
    """Number of rows in the batch."""
    ids: Tensor
    """`[L]` int64."""
    kept: Tensor
    """`[L]` bool, False at padding."""
    prompt: Tensor
    """`[1, l]` int64, unpadded."""

    def unpadded(self, columns: int) -> int:
        """Count the unpadded tokens among the first `columns`, which may exceed the input's length."""
        return columns - int((~self.kept[:columns]).sum())


def processors_of_rows(
    processors: LogitsProcessorList, input_ids: Tensor, mask: Tensor
) -> list[LogitsProcessorList]:
    """Create for each row the processors that plain generation would use for it alone, unpadded.

    A caller's own processor is one object for all rows and is called with one row at a time.

    Args:
        processors: as `model.generate` prepares them for a batch.
        input_ids: `[R, L]` int64, the batch.
        mask: `[R, L]` bool, False at padding.

    Raises:
        ValueError: naming the argument, if a processor runs the model itself or was made for another batch size.
    """
    for processor in processors:
        if isinstance(processor, lp.UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise ValueError(
                "guidance_scale: expected None or 1, got one that needs a second pass per token"
            )
    rows = [
        _Row(at, len(mask), ids, kept, ids[kept][None])
        for at, (ids, kept) in enumerate(zip(input_ids, mask, strict=True))
    ]
    return [LogitsProcessorList(_of_row(p, row) for p in processors) for row in rows]


def _of_row(processor: Any, row: _Row) -> Any:
    if not of_library(processor):
        return processor
    if isinstance(processor, lp.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return lp.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row.at, ids), 1)
    if isinstance(processor, lp.EncoderRepetitionPenaltyLogitsProcessor):
        return _with_encoder_ids(processor, row)
    if isinstance(processor, lp.EncoderNoRepeatNGramLogitsProcessor):
        return _with_encoder_ngrams(processor, row)
    own = copy.deepcopy(processor)  # some have state
    if isinstance(own, lp.RepetitionPenaltyLogitsProcessor):
        own.prompt_ignore_length = _ignored(own.prompt_ignore_length, row)
    for kind, name in COUNTED.items():
        if isinstance(own, kind):
            setattr(own, name, row.unpadded(getattr(own, name)))
    return own


def _ignored(columns: int | Tensor | None, row: _Row) -> int | None:
    """Count the tokens that a penalty ignores, without padding."""
    if isinstance(columns, Tensor):
        if len(columns) != row.rows:
            raise ValueError(
                f"prompt_ignore_length: expected one per row, {row.rows}, got {len(columns)}"
            )
        columns = int(columns[row.at])
    return None if columns is None else row.unpadded(columns)


def _with_encoder_ids(processor: Any, row: _Row) -> Any:
    """Replace the batch's input ids in a processor by the row's prompt; other ids given by the caller stay."""
    own, given = copy.copy(processor), processor.encoder_input_ids
    theirs = given.repeat_interleave(max(1, row.rows // len(given)), 0)[row.at : row.at + 1]
    own.encoder_input_ids = row.prompt if torch.equal(theirs, row.ids[None]) else theirs
    return own


def _with_encoder_ngrams(processor: Any, row: _Row) -> Any:
    """Do the same for a processor that has already turned them into n-grams."""
    batch, alone = (
        lp.EncoderNoRepeatNGramLogitsProcessor(processor.ngram_size, ids)
        for ids in (row.ids, row.prompt)
    )
    theirs = processor.generated_ngrams[row.at * processor.batch_size // row.rows]
    if theirs != batch.generated_ngrams[0]:
        alone.generated_ngrams = [theirs]
    return alone


def of_library(processor: Any) -> bool:
    """Return whether a processor's class comes from transformers."""
    return type(processor).__module__.startswith("transformers.")


def fused_settings(processors: LogitsProcessorList) -> dict[str, Any] | None:
    """Return temperature, top-k and top-p if the processors are only these, in this order; else None."""
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
