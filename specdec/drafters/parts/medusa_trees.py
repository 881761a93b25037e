"""Trees over independent heads: a node is a path of ranks, and its score the sum of its tokens' log-probabilities.

What head i says does not depend on what was chosen before, so of the next T tokens all paths are known at once. The
best of them are found without a search: every path that could be among the n best is written down once, in a table,
and per round their scores are added up and sorted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Path = tuple[int, ...]
"""Ranks from the root down: which of a head's tokens, the likeliest first."""


class Paths(NamedTuple):
    """Paths as tensors; they are in order of length, and those of a length in order of ranks."""

    places: Tensor
    """`[C, T]` int64, where the log-probabilities of a path's tokens lie among all heads' and a zero behind them."""
    last: Tensor
    """`[C]` int64, where its own token lies among all heads'."""
    parents: Tensor
    """`[C]` int64, the path without its last rank; -1 for the root."""

    @classmethod
    def of(cls, paths: Iterable[Path], *, heads: int, ranks: int, device: torch.device) -> Paths:
        """Lay out paths, each with its beginnings among them, for the `ranks` best tokens of each of `heads` heads."""
        ordered = sorted(paths, key=lambda path: (len(path), path))
        index = {path: at for at, path in enumerate(ordered)}
        places = [
            [level * ranks + rank for level, rank in enumerate(path)]
            + [heads * ranks] * (heads - len(path))
            for path in ordered
        ]
        made = (
            torch.tensor(places, dtype=torch.int64).view(len(ordered), heads),
            torch.tensor([row[len(path) - 1] for row, path in zip(places, ordered, strict=True)]),
            torch.tensor([index.get(path[:-1], -1) for path in ordered]),
        )
        # Small: the host does not wait.
        return cls(*(x.to(device, non_blocking=True) for x in made))

    def scores(self, log_probs: Tensor) -> Tensor:
        """Add up what each path's tokens have.

        Args:
            log_probs: `[B, T, k]` float32.

        Returns:
            `[B, C]` float32; no path has more than its beginnings.
        """
        # Rounding may leave a certain token a little more than zero.
        flat = F.pad(log_probs.flatten(1).clamp(max=0), (0, 1))  # [B, T k + 1]
        return flat[:, self.places].sum(-1)


class Chosen(NamedTuple):
    """Nodes of B trees."""

    last: Tensor
    """`[B, n]` int64, where each node's token lies among all heads'."""
    parents: Tensor
    """`[B, n]` int64; -1 for the root."""
    scores: Tensor
    """`[B, n]` float32."""


def whole(paths: Paths, log_probs: Tensor) -> Chosen:
    """Take every path, the same in all rows."""
    scores = paths.scores(log_probs)
    return Chosen(paths.last.expand(scores.shape), paths.parents.expand(scores.shape), scores)


def likeliest(paths: Paths, log_probs: Tensor, nodes: int) -> Chosen:
    """Take the paths with the best scores; among equals shorter ones, then those of lower ranks.

    Args:
        paths: all that can be among them, as `contenders` lists them.
        log_probs: `[B, T, k]` float32, the best first.
        nodes: how many, at most.
    """
    scores, order = paths.scores(log_probs).sort(dim=1, descending=True, stable=True)
    # A path's beginnings have at least its score and come earlier in the table: none is left behind.
    best = order[:, :nodes]
    place = order.argsort(1)  # [B, C], of each path among all
    above = paths.parents[best]
    parents = place.gather(1, above.clamp(min=0)).masked_fill(above < 0, -1)
    return Chosen(paths.last[best], parents, scores[:, :nodes])


def contenders(nodes: int, ranks: int, heads: int) -> list[Path]:
    """List the paths that can be among the `nodes` best, whatever the heads say.

    Paths that are nowhere longer and nowhere of a worse rank are at least as likely. So a path is one only if they, it
    included, are no more than `nodes`: of each length the product of its ranks, counted from 1.
    """
    found: list[Path] = []
    level: list[tuple[Path, int, int]] = [((), 0, 1)]
    for _ in range(heads):
        longer = []
        for path, before, product in level:
            for rank in range(ranks):
                count = product * (rank + 1)
                if before + count > nodes:
                    break
                longer.append(((*path, rank), before + count, count))
        found += [path for path, _, _ in longer]
        level = longer
    return found


def grown(children: Mapping[str, int]) -> tuple[Path, ...]:
    """Write down the tree in which the path of digits `key` has so many children, of ranks from 0 on."""
    return tuple(
        (*map(int, above), rank) for above, count in children.items() for rank in range(count)
    )


TREES = {
    # Medusa's default, chosen for Vicuna 7B from how often each head's ranks were right.
    "mc_sim_7b_63": grown(
        {"": 10, "0": 10, "1": 7, "2": 3, "3": 2, **dict.fromkeys("456789", 1)}
        | {"00": 10, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1, "10": 2, "20": 1}
        | {"000": 2}
    ),
    "small_13": grown({"": 4, "0": 2, "1": 1, "2": 1, "00": 2, "01": 1, "000": 2}),
}  # fmt: skip
"""Static trees by name."""


def checked_paths(tree: Collection[Sequence[int]]) -> tuple[Path, ...]:
    """Return a caller's tree as paths.

    Raises:
        ValueError: if there is none; naming the path that is empty, has a rank below 0, is there twice or whose beginning is
            not there.
    """
    try:
        paths = [tuple(int(rank) for rank in path) for path in tree]
    except (TypeError, ValueError) as error:
        raise ValueError(f"tree: expected paths of ranks, got {tree!r}") from error
    if not paths:
        raise ValueError("tree: expected at least one path, got none")
    known = {(), *paths}
    for path in paths:
        if not path or min(path) < 0:
            raise ValueError(f"tree: expected paths of ranks from 0 on, got {list(path)}")
        if path[:-1] not in known:
            raise ValueError(
                f"tree: expected the path {list(path[:-1])}, which {list(path)} continues, got none"
            )
    if len(known) <= len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"tree: expected every path once, got {list(twice)} twice")
    return tuple(paths)
