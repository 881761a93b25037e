"""`Text`: the tokens of all rows, on the device and on the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Text:
    """Prompts and generated tokens, one row per text."""

    def __init__(
        self, prompts: list[list[int]], limits: list[int], *, margin: int, device: torch.device
    ) -> None:
        """Copy prompts to the device.

        Args:
            prompts: token ids per row; new tokens are appended to these lists.
            limits: most new tokens per row.
            margin: columns after the longest row, for tokens that a round writes past a row's end.
            device: the target's.
        """
        self.host = prompts
        """Per row all tokens emitted so far, the prompt included."""
        self.ends = [len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)]
        """Per row the column after its last possible token."""
        columns = max(self.ends) + margin
        padded = [ids + [0] * (columns - len(ids)) for ids in prompts]
        self.ids = torch.tensor(padded).to(device)
        """`[R, columns]` int64: per row all committed tokens and the root; later columns are stale."""
        self.device_ends = torch.tensor(self.ends, device=device)
        """`[R]` int64, `ends`."""

    def write(
        self, rows: Tensor, columns: Tensor, tokens: Tensor, where: Tensor | None = None
    ) -> None:
        """Write int64 tokens; the arguments broadcast against each other.

        Args:
            rows: row indices.
            columns: column indices.
            tokens: the token ids to write.
            where: bool mask of the places to write; None writes all.
        """
        if where is not None:
            tokens = torch.where(where, tokens, self.ids[rows, columns])
        self.ids[rows, columns] = tokens

    def hand_out(self, row: int, tokens: list[int]) -> None:
        """Append emitted tokens to a row's list on the host."""
        self.host[row] += tokens

    def so_far(self, row: int, columns: int) -> Tensor:
        """Return the first `columns` tokens of a row, `[1, columns]` int64."""
        return self.ids[row : row + 1, :columns]


def shared_length(known: list[int], text: list[int], cached: int) -> int:
    """Count the cached tokens that a text begins with, without its last one, which is always read for its logits."""
    most = min(cached, len(known), len(text) - 1)
    return next((i for i in range(most) if known[i] != text[i]), most)
