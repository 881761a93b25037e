"""Pickers: choose the target's token after each node of a tree, greedily or by sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from specdec_kernels.dispatch import chooses_kernel, host_may_look

from .device_flag import flag_on
from .model.target import Target
from .processors import of_library
from .sampling import Sampling, most_likely
from .state import State
from .tree import TokenTree

UNKNOWN = -1
"""Marks a node after which no token was picked; equal to no token id."""


class Picker(Protocol):
    """Chooses the target's token after the nodes of a tree."""

    @property
    def sampling(self) -> Sampling | None:
        """Sampling parameters; None for greedy."""
        ...

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Pick the token after each node.

        Args:
            state: the rows; node 0 of a row's tree is its newest certain token.
            tree: B trees of N nodes.
            logits: `[B, N, V]`, the target's logits at each node.

        Returns:
            `[B, N]` int64; may be `UNKNOWN` at nodes that the text does not reach.
        """
        ...


class Greedy:
    """Picks the most likely token, the lowest id among equals."""

    sampling = None

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Pick after all nodes at once."""
        return most_likely(logits)


class Recorded(NamedTuple):
    """The target's output where a token was picked."""

    logits: Tensor
    """`[V]` float32."""
    scores: Tensor
    """`[V]` float32, processed."""


@dataclass(slots=True)
class PathPicker:
    """Picks from the root down, node by node, along the path of the text, with the calls of plain generation.

    Expensive work, such as a sort or a logits processor that reads the text, is done once per accepted token.
    """

    sampling: Sampling | None = None
    """None for greedy."""
    processors: Sequence[LogitsProcessorList] | None = None
    """Per text; each is called with one row, `[1, L]` ids and `[1, V]` scores in float32, token by token."""
    end_tokens: Tensor | None = None
    """`[any]` int64, tokens that end the walk."""
    records: list[list[Recorded]] | None = None
    """Per text, filled with the target's output at each token."""

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Pick after the nodes on the path of the text, and write the tokens into the state's text."""
        watched, ended = self._watched(logits), flag_on(logits.device)
        batch, nodes = tree.tokens.shape
        picked = torch.full_like(tree.tokens, UNKNOWN)
        places = torch.arange(batch, device=logits.device)  # rows that continue
        at = torch.zeros_like(places)  # the current node of each row
        walking = torch.ones_like(places, dtype=torch.bool)
        first = state.position_after(0)
        for depth in range(nodes):
            rows, columns = state.rows.ids[places], first[places] + depth
            hosts = [
                state.rows.host[place] for place in (places.tolist() if watched else range(batch))
            ]
            said = logits[places, at]
            scores = self._process(state, hosts, said, depth)
            tokens = (
                most_likely(scores)
                if self.sampling is None
                else self.sampling.draw(
                    scores, rows, columns, processed=self.processors is not None
                )
            )
            tokens = torch.where(walking, tokens, picked[places, at])
            picked[places, at] = tokens
            state.text.write(rows, columns, tokens, where=walking)
            children = (tree.parents[places] == at[:, None]) & (
                tree.tokens[places] == tokens[:, None]
            )
            found = children.any(1) & walking
            if self.end_tokens is not None:
                # Not `isin`, which sorts many end tokens and blocks the host.
                found &= (tokens[:, None] != self.end_tokens).all(1)
            if watched:
                places, children = places[found], children[found]
                if not len(places):
                    break
                at, walking = children.long().argmax(1), walking[found]
            else:
                at, walking = torch.where(found, children.long().argmax(1), at), found
                ended.post(~walking.any())
                if ended.seen():
                    break  # the flag may be late, but steps after the end pick nothing
        return picked

    def _watched(self, logits: Tensor) -> bool:
        """Return whether the host reads which rows continue: on a CPU, or if processors read the host anyway."""
        if host_may_look(logits) or self.records is not None:
            return True
        return any(
            isinstance(p, PrefixConstrainedLogitsProcessor) or not of_library(p)
            for processors in self.processors or ()
            for p in processors
        )

    def _process(self, state: State, hosts: list[int], said: Tensor, depth: int) -> Tensor:
        """Process `[B, V]` logits, each row with its text up to its node of this depth."""
        if self.processors is None and self.records is None:
            return said
        scores = []
        for row, logits in zip(hosts, said.to(torch.float32, copy=True)[:, None], strict=True):
            raw = logits.clone()
            ids = state.text_after(row, depth)
            processed = logits if self.processors is None else self.processors[row](ids, logits)
            if self.records is not None:
                self.records[row].append(Recorded(raw[0], processed[0]))
            scores.append(processed)
        return torch.cat(scores)


@dataclass(frozen=True, slots=True)
class TreeSampler:
    """Samples after all nodes at once: on a GPU this takes less time than sampling one after another."""

    sampling: Sampling

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Sample after every node, padding included."""
        columns = state.position_after(tree.depth)  # [B, N]
        rows = state.rows.ids[:, None].expand_as(columns)
        drawn = self.sampling.draw(logits.flatten(0, 1), rows.flatten(), columns.flatten())
        return drawn.view_as(columns)


@torch.no_grad()  # a kernel is refused where gradients are recorded
def sampler(sampling: Sampling, target: Target) -> Picker:
    """Return the picker for sampling without logits processors: `TreeSampler` where the kernel runs, else `PathPicker`."""
    kernel = chooses_kernel(target.impl, target.embedding)
    return TreeSampler(sampling) if kernel else PathPicker(sampling)
