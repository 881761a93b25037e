"""Sizes of tiles and numbers of splits, from shapes and the GPU alone, so that a captured graph fits every length."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, get_args

from ..gpu import Gpu

SplitPolicy = Literal["auto", "fixed"]
SPLIT_POLICIES = get_args(SplitPolicy)
LEAST_SPLIT = 256
"""Slots of a split: exactly so many where splits are fixed, at least so many elsewhere, to be worth merging."""
MOST_SPLITS = 64
WIDE = ("sm_90", "sm_100", "sm_103")
"""Where products read operands from shared memory: more rows fit into a program's registers."""


class Tiles(NamedTuple):
    """How one program works."""

    block_m: int
    """Rows: query heads of one group, of one or more nodes."""
    block_n: int
    """Slots read at a time, at most a word of ancestors."""
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Write out as a launch takes it."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


@cache
def choose_tiles(rows: int, size: int, itemsize: int, gpu: Gpu, policy: SplitPolicy) -> Tiles:
    """Choose for `rows` rows of `size` numbers; fixed splits have one answer for all numbers of rows."""
    large, amd = size > 128, gpu.arch.startswith("gfx")
    # Three stages hide memory's latency with two programs per processor; shared memory holds two where rows are many
    # or long, and AMD's always does.
    stages = 2 if large or amd else 3
    if itemsize == 4:
        # Multiplied without tensor cores, which round float32: operands take registers as well.
        return Tiles(16, 16 if large else 32, 8 if size > 64 else 4, stages)
    wide = gpu.arch in WIDE
    most = (64 if wide else 32) if large else (128 if wide else 64)
    wanted = 64 if policy == "fixed" else max(16, 1 << (rows - 1).bit_length())
    block_m = min(wanted, most)
    if block_m == 128:
        return Tiles(128, 64, 8, 2)
    if block_m == 16:
        stages = 2  # registers leave room for three or four programs; with three stages they spill at D 128 on sm_90
    # 4 warps where they suffice: the more programs on a processor, the more loads are in flight.
    few = block_m == 16 or (not large and (block_m == 32 or gpu.arch == "sm_90"))
    return Tiles(block_m, 32 if large else 64, 4 if few else 8, stages)


@cache
def choose_splits(programs: int, slots: int, tiles: Tiles, gpu: Gpu, policy: SplitPolicy) -> int:
    """Choose into how many parts prefixes of up to `slots` slots are cut."""
    most = max(1, -(-slots // LEAST_SPLIT))
    if policy == "fixed":
        return most

    # In units of one tile's time: waves of programs, each with some ten tiles' worth of start and end, then merging,
    # which reads every row of every split. Estimates, to be replaced by measurements.
    def cost(splits: int) -> float:
        waves = -(-programs * splits // gpu.processors)
        return waves * (slots / tiles.block_n / splits + 10) + 0.22 * tiles.block_m / 16 * splits

    return min(range(1, min(most, MOST_SPLITS) + 1), key=cost)
