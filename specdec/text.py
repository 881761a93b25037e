"""The tokens of all rows, on the device and on the host. Nothing else writes them."""

from __future__ import annotations

import torch
from torch import Tensor


class Text:
    """Prompts and what follows them, one row each."""

    def __init__(
        self, prompts: list[list[int]], limits: list[int], *, margin: int, device: torch.device
    ) -> None:
        """Copy prompts to the device.

        Args:
            prompts: token ids per row; these lists grow as the rows do.
            limits: most new tokens per row.
            margin: columns behind the longest row, for what one round writes too much.
            device: the target's.
        """
        self.host = prompts
        """Per row all tokens that were handed out, the prompt first."""
        self.ends = [len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)]
        """Per row the column behind its last possible token."""
        columns = max(self.ends) + margin
        padded = [ids + [0] * (columns - len(ids)) for ids in prompts]
        self.ids = torch.tensor(padded).to(device)
        """`[R, columns]` int64: per row all committed tokens and the root; what follows is stale."""
        self.device_ends = torch.tensor(self.ends, device=device)
        """`[R]` int64, `ends`."""

    def write(
        self, rows: Tensor, columns: Tensor, tokens: Tensor, where: Tensor | None = None
    ) -> None:
        """Write int64 tokens to their places; the arguments broadcast against each other.

        Args:
            rows: of the text.
            columns: of the text.
            tokens: what comes there.
            where: bool, false at places that keep what they have; None to write all.
        """
        if where is not None:
            tokens = torch.where(where, tokens, self.ids[rows, columns])
        self.ids[rows, columns] = tokens

    def hand_out(self, row: int, tokens: list[int]) -> None:
        """Add what the host learned of a row."""
        self.host[row] += tokens

    def so_far(self, row: int, columns: int) -> Tensor:
        """Return the first `columns` tokens of a row, `[1, columns]` int64."""
        return self.ids[row : row + 1, :columns]


def shared_length(known: list[int], text: list[int], cached: int) -> int:
    """Count the cached tokens that a text begins with; its last one is always read again: its logits are wanted."""
    most = min(cached, len(known), len(text) - 1)
    return next((i for i in range(most) if known[i] != text[i]), most)
