"""Pick: the target's own token after the nodes of a tree, greedily or sampled."""

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
"""Stands for the token after a node that a walk did not come to; equal to no token."""


class Picker(Protocol):
    """Says what the target writes after the nodes of a tree."""

    @property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; None where the best is taken."""
        ...

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Pick the token after each node.

        Args:
            state: the rows; a row's node 0 is its newest certain token.
            tree: B trees of N nodes.
            logits: `[B, N, V]`, the target's at each node.

        Returns:
            `[B, N]` int64; `UNKNOWN` where it does not matter, since the text does not come to that node.
        """
        ...


class Greedy:
    """Picks the most likely token, the lowest id among equals."""

    sampling = None

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Pick after every node at once."""
        return most_likely(logits)


class Recorded(NamedTuple):
    """What the target said where a token was picked."""

    logits: Tensor
    """`[V]` float32."""
    scores: Tensor
    """`[V]` float32, processed."""


@dataclass(slots=True)
class PathPicker:
    """Picks from the root down, node by node, only where the text goes: each choice as in plain generation.

    What costs more than a glance at a row's logits, such as a sort or a processor that reads the text so far, is done
    once per token that is kept.
    """

    sampling: Sampling | None = None
    """None for greedy."""
    processors: Sequence[LogitsProcessorList] | None = None
    """Per prompt; each sees one row, `[1, L]` ids and `[1, V]` scores in float32, token after token."""
    end_tokens: Tensor | None = None
    """`[any]` int64, tokens that no walk goes beyond."""
    records: list[list[Recorded]] | None = None
    """Per prompt, filled with what was said at each token."""

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Pick after the nodes that the text comes to; writes these tokens into the state's text."""
        watched, ended = self._watched(logits), flag_on(logits.device)
        batch, nodes = tree.tokens.shape
        picked = torch.full_like(tree.tokens, UNKNOWN)
        places = torch.arange(batch, device=logits.device)  # of the rows that go on
        at = torch.zeros_like(places)  # the node that each has come to
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
                # Not `isin`, which sorts many end tokens and lets the host wait for them.
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
                    break  # late: steps after the end have picked nothing
        return picked

    def _watched(self, logits: Tensor) -> bool:
        """Tell whether the host looks who goes on: where that costs nothing, or the processors look themselves."""
        if host_may_look(logits) or self.records is not None:
            return True
        return any(
            isinstance(p, PrefixConstrainedLogitsProcessor) or not of_library(p)
            for processors in self.processors or ()
            for p in processors
        )

    def _process(self, state: State, hosts: list[int], said: Tensor, depth: int) -> Tensor:
        """Process `[B, V]` logits, each row with its own text up to its node of this depth."""
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
    """Draws after every node at once: on a GPU all of them cost less than to wait for one after the other."""

    sampling: Sampling

    def pick(self, state: State, tree: TokenTree, logits: Tensor) -> Tensor:
        """Draw after every node, padding included."""
        columns = state.position_after(tree.depth)  # [B, N]
        rows = state.rows.ids[:, None].expand_as(columns)
        drawn = self.sampling.draw(logits.flatten(0, 1), rows.flatten(), columns.flatten())
        return drawn.view_as(columns)


@torch.no_grad()  # a kernel is refused where gradients are recorded
def sampler(sampling: Sampling, target: Target) -> Picker:
    """Return what draws where nothing but its settings matters: all nodes at once where a kernel does it."""
    kernel = chooses_kernel(target.impl, target.embedding)
    return TreeSampler(sampling) if kernel else PathPicker(sampling)
