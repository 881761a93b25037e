"""`State`: the rows of a decode, and how a round updates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .model.cache import Rows, TreeCache
from .model.passed import Verified
from .text import Text
from .tree import Accepted, TokenTree

if TYPE_CHECKING:
    from .sampling import Sampling

Stops = Callable[[int, Tensor], bool]
"""Stopping criterion: takes a row's index and its text so far, `[1, L]` int64; returns whether the row ends there."""


class Emitted(NamedTuple):
    """The new tokens of one row in one round."""

    row: int
    """Index of the prompt."""
    tokens: list[int]
    """New tokens, cut after the end of the text."""
    drafted: int
    """Number of leading tokens that a drafter proposed; the target added the rest."""
    nodes: int
    """Nodes verified, root included; 0 after prefill."""
    proposed: int
    """Proposals before packing, root included."""
    finished: bool
    """Whether the row ends here."""
    sources: Sequence[int] = ()
    """Source of each verified node without the root: the beam, or the drafter of a union."""
    accepted_sources: Sequence[int] = ()
    """Source of each accepted node, in text order."""


class State:
    """The unfinished rows. A finished row leaves the index; the cache is not copied."""

    def __init__(
        self,
        cache: TreeCache,
        text: Text,
        *,
        eos_token_ids: frozenset[int],
        stops: Stops | None = None,
        sampling: Sampling | None = None,
        memory: dict[object, Any] | None = None,
    ) -> None:
        """Create the state of a decode.

        Args:
            cache: the KV cache; its lengths are the rows' cached tokens.
            text: the tokens of the same rows.
            eos_token_ids: tokens that end a row.
            stops: further stopping criterion.
            sampling: the target's sampling parameters; None for greedy.
            memory: state that drafters keep between the texts of a session.
        """
        self.cache, self.text = cache, text
        self.hidden: Tensor = torch.empty(0)
        """`[R, E]`, the target's last hidden state at each row's last committed token; set by prefill."""
        self.inputs: dict[int, Tensor] = {}
        """The hidden states that enter each layer a drafter listens to, at the same tokens."""
        self.rows = Rows.first(len(text.host), text.ids.device)
        """The B unfinished rows."""
        self.eos_token_ids, self.stops = eos_token_ids, stops
        self.sampling = sampling
        """The target's sampling parameters; drafters can compute its noise in advance."""
        self.memory: dict[object, Any] = {} if memory is None else memory
        """State that each drafter keeps about these rows and earlier texts; the key is the drafter."""
        self._roots = 0
        """Certain but uncached tokens per row of `rows`: 0 during prefill, then 1."""
        self._beside = self.rows.select([])
        """Rows that continue while others start."""

    @property
    def lengths(self) -> Tensor:
        """`[B]` int64, number of cached tokens; a row's root is the token at this index of its text."""
        return self.cache.lengths[self.rows.ids]

    @property
    def roots(self) -> Tensor:
        """`[B]` int64, each row's root: its certain but uncached token; during prefill, the prompt's last token."""
        return self.text.ids[self.rows.ids, self.lengths if self._roots else self.lengths - 1]

    @property
    def remaining(self) -> list[int]:
        """Per row, the number of tokens still allowed."""
        return [self.text.ends[row] - self.cache.host_lengths[row] - 1 for row in self.rows.host]

    @property
    def row_depth(self) -> Tensor:
        """`[B]` int64, depth of the deepest node that each row can still use."""
        return self.text.device_ends[self.rows.ids] - self.lengths - 2

    def position_after(self, depth: Tensor | int) -> Tensor:
        """Return the text positions of the tokens after nodes; the sampling noise is keyed by them.

        Args:
            depth: depth of the nodes, a number or `[B, N]` int64; 0 is a row's newest certain token.

        Returns:
            `[B]` or `[B, N]` int64, columns of the text.
        """
        lengths = self.lengths if isinstance(depth, int) else self.lengths[:, None]
        return lengths + (depth + self._roots)

    def text_after(self, row: int, depth: int) -> Tensor:
        """Return a row's text up to and including a node of this depth, `[1, L]` int64."""
        return self.text.so_far(row, self.cache.host_lengths[row] + self._roots + depth)

    def begin(self, rows: Rows) -> None:
        """Start rows; until `open`, the state holds only these."""
        self._beside, self.rows, self._roots = self.rows, rows, 0

    def open(self, first_tokens: Tensor, said: Verified) -> list[Emitted]:
        """Finish the prefill of B rows.

        Args:
            first_tokens: `[B]` int64, the first new tokens; they become roots.
            said: the target's output after the prompts.
        """
        if not len(self.hidden):
            every = len(self.text.host)
            self.hidden = said.hidden.new_zeros(every, said.hidden.shape[1])
            self.inputs = {at: x.new_zeros(every, x.shape[1]) for at, x in said.inputs.items()}
        self.hidden[self.rows.ids] = said.hidden
        for layer, states in said.inputs.items():
            self.inputs[layer][self.rows.ids] = states
        self.text.write(self.rows.ids, self.lengths, first_tokens)
        self._roots = 1
        emitted = [
            self._emit(at, [token], self.cache.host_lengths[self.rows.host[at]], 0, 0)
            for at, token in enumerate(first_tokens.tolist())
        ]
        self._leave(emitted)
        if self._beside.host:
            # In cache order: a full cache is then read without an index.
            both = sorted(self._beside.host + self.rows.host, key=self.cache.row_of)
            self.rows = Rows.of(both, self.rows.ids.device)
        return emitted

    def write(
        self, tree: TokenTree, accepted: Accepted, verified: Verified, proposed: Tensor
    ) -> Tensor:
        """Write the accepted tokens and the next roots into the text; comes before commit.

        Args:
            tree: the verified trees.
            accepted: the accepted paths.
            verified: the target's output at the nodes.
            proposed: `[B]` int64, proposals before packing, without the root.

        Returns:
            `[B, 3 N + 3]` int64 for `advance`: new tokens, node sources and accepted path (N each), then the numbers
            of accepted nodes, nodes and proposals.
        """
        nodes = tree.tokens.shape[1]
        ends = accepted.lengths[:, None]  # [B, 1]
        drafted = tree.tokens.gather(1, accepted.path.clamp(min=0)).roll(-1, 1)
        new = drafted.scatter(1, ends, accepted.next_tokens[:, None])
        assert self.cache.current is not None
        prefix_lens = self.cache.current.prefix_lens  # the verified nodes lie behind these
        columns = prefix_lens[:, None] + torch.arange(1, nodes + 1, device=new.device)
        self.text.write(self.rows.ids[:, None], columns, new)
        hidden, last = verified.hidden, accepted.path.gather(1, ends)[..., None]
        at_last = last.expand(-1, -1, hidden.shape[-1])
        self.hidden[self.rows.ids] = hidden.gather(1, at_last)[:, 0]
        for layer, states in verified.inputs.items():
            self.inputs[layer][self.rows.ids] = states.take_along_dim(last, 1)[:, 0]
        counts = torch.stack([accepted.lengths, tree.sizes, proposed], 1)
        return torch.cat([new, tree.source, accepted.path, counts], 1)

    def advance(self, written: Tensor) -> list[Emitted]:
        """Copy the result of `write` to the host and remove finished rows; the only host read of a round."""
        emitted = []
        for at, values in enumerate(written.tolist()):
            accepted, nodes, proposed = values[-3:]
            new, width = accepted + 1, len(values) // 3 - 1
            sources, path = values[width : 2 * width], values[2 * width + 1 : 2 * width + new]
            root = self.cache.host_lengths[self.rows.host[at]]
            self.cache.host_lengths[self.rows.host[at]] += new
            said = self._emit(at, values[:new], root + 1, nodes, proposed + 1)
            kept = [sources[node] for node in path]
            emitted.append(said._replace(sources=sources[1:nodes], accepted_sources=kept))
        self._leave(emitted)
        return emitted

    def _emit(self, at: int, tokens: list[int], column: int, nodes: int, proposed: int) -> Emitted:
        """Cut new tokens, the first of them at `column` of the text, after the end of the text."""
        row, drafted = self.rows.host[at], len(tokens) - 1
        tokens = tokens[: self.text.ends[row] - column]
        ended = False
        for count, token in enumerate(tokens, 1):
            ended = token in self.eos_token_ids
            if self.stops is not None:
                # Called after each token, as in plain generation, even if the row ends anyway.
                ended |= self.stops(row, self.text.so_far(row, column + count))
            if ended:
                tokens = tokens[:count]
                break
        self.text.hand_out(row, tokens)
        finished = ended or column + len(tokens) >= self.text.ends[row]
        return Emitted(row, tokens, min(drafted, len(tokens)), nodes, proposed, finished)

    def _leave(self, emitted: list[Emitted]) -> None:
        stay = [at for at, e in enumerate(emitted) if not e.finished]
        if len(stay) < len(emitted):
            self.rows = self.rows.select(stay)
