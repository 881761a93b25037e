"""Trees over independent heads: a node is a path of ranks, its score the sum of its tokens' log-probabilities.

Heads do not depend on earlier choices, so all paths are known at once and no search is needed. A table lists every path
that can be among the n best. Per round their scores are summed and sorted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Path = tuple[int, ...]
"""Ranks from the root down; rank 0 is a head's likeliest token."""


class Paths(NamedTuple):
    """Paths as tensors, sorted by length, then by ranks."""

    places: Tensor
    """`[C, T]` int64, indices of a path's tokens among all heads' log-probabilities; padding points at a zero behind them."""
    last: Tensor
    """`[C]` int64, index of the path's last token among all heads'."""
    parents: Tensor
    """`[C]` int64, index of the path without its last rank; -1 for the root."""

    @classmethod
    def of(cls, paths: Iterable[Path], *, heads: int, ranks: int, device: torch.device) -> Paths:
        """Build the tensors of paths that include all their prefixes, for `heads` heads with `ranks` tokens each."""
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
        # Small uploads that the host does not wait for.
        return cls(*(x.to(device, non_blocking=True) for x in made))

    def scores(self, log_probs: Tensor) -> Tensor:
        """Sum the log-probabilities of each path.

        Args:
            log_probs: `[B, T, k]` float32.

        Returns:
            `[B, C]` float32; no path scores higher than its prefixes.
        """
        # Rounding can make a log-probability slightly positive.
        flat = F.pad(log_probs.flatten(1).clamp(max=0), (0, 1))  # [B, T k + 1]
        return flat[:, self.places].sum(-1)


class Chosen(NamedTuple):
    """Chosen nodes of B trees."""

    last: Tensor
    """`[B, n]` int64, index of each node's token among all heads'."""
    parents: Tensor
    """`[B, n]` int64; -1 for the root."""
    scores: Tensor
    """`[B, n]` float32."""


def whole(paths: Paths, log_probs: Tensor) -> Chosen:
    """Choose every path, the same in all rows."""
    scores = paths.scores(log_probs)
    return Chosen(paths.last.expand(scores.shape), paths.parents.expand(scores.shape), scores)


def likeliest(paths: Paths, log_probs: Tensor, nodes: int) -> Chosen:
    """Choose the paths with the best scores; ties go to shorter paths, then to lower ranks.

    Args:
        paths: candidates, as listed by `contenders`.
        log_probs: `[B, T, k]` float32, the best first.
        nodes: maximum number of paths.
    """
    scores, order = paths.scores(log_probs).sort(dim=1, descending=True, stable=True)
    # Prefixes score at least as high and come earlier in the table, so they are chosen too.
    best = order[:, :nodes]
    place = order.argsort(1)  # [B, C], rank of each path
    above = paths.parents[best]
    parents = place.gather(1, above.clamp(min=0)).masked_fill(above < 0, -1)
    return Chosen(paths.last[best], parents, scores[:, :nodes])


def contenders(nodes: int, ranks: int, heads: int) -> list[Path]:
    """List the paths that can be among the `nodes` best, for any probabilities.

    A path is at least as likely as any path that extends it or has a worse rank somewhere. A path is a candidate only if the
    number of paths at least as likely, itself included, is at most `nodes`: per length the product of (rank + 1).
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
    """Expand a tree given as number of children per path of digits; children have ranks from 0."""
    return tuple(
        (*map(int, above), rank) for above, count in children.items() for rank in range(count)
    )


TREES = {
    # Medusa's default, chosen for Vicuna 7B from the accuracy of each head and rank.
    "mc_sim_7b_63": grown(
        {"": 10, "0": 10, "1": 7, "2": 3, "3": 2, **dict.fromkeys("456789", 1)}
        | {"00": 10, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1, "10": 2, "20": 1}
        | {"000": 2}
    ),
    "small_13": grown({"": 4, "0": 2, "1": 1, "2": 1, "00": 2, "01": 1, "000": 2}),
}  # fmt: skip
"""Static trees by name."""


def checked_paths(tree: Collection[Sequence[int]]) -> tuple[Path, ...]:
    """Validate a static tree and return its paths.

    Raises:
        ValueError: if there is no path; or naming a path that is empty, negative, duplicate or lacks its prefix.
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
