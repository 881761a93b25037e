"""Sizes of tiles and numbers of splits, from shapes and the GPU alone: a captured graph fits all prefixes of a cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from ..gpu import Gpu

SplitPolicy = Literal["auto", "fixed"]
SPLIT_POLICIES = get_args(SplitPolicy)
MIN_SPLIT = 256
"""Slots of a split, at least, to be worth merging."""
MAX_SPLITS = 64
MAX_FIXED_SPLITS = 32
"""Where splits are fixed, for all caches alike: a row's own prefix decides, 256 slots in each up to 8192."""
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
    registers: int | None = None
    """At most so many per thread; None leaves it to the compiler. NVIDIA's alone."""

    def options(self) -> dict[str, int]:
        """Write out as a launch takes it."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {
            **limit,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def padded(size: int) -> int:
    """Count the columns that a head of `size` numbers takes in a tile: a power of two, at least 16 in products."""
    return max(16, 1 << (size - 1).bit_length())


@lru_cache(maxsize=1024)
def choose_tiles(rows: int, size: int, itemsize: int, gpu: Gpu, policy: SplitPolicy) -> Tiles:
    """Choose for `rows` rows of `size` numbers; fixed splits have one answer for all numbers of rows."""
    tiles = _fastest_tiles(rows, size, itemsize, gpu, policy)
    while tiles.stages > 2 and _shared_bytes(tiles, size, itemsize, gpu) > gpu.shared_bytes:
        tiles = tiles._replace(stages=tiles.stages - 1)
    while tiles.block_n > 16 and _shared_bytes(tiles, size, itemsize, gpu) > gpu.shared_bytes:
        tiles = tiles._replace(block_n=tiles.block_n // 2)
    return tiles


def _shared_bytes(tiles: Tiles, size: int, itemsize: int, gpu: Gpu) -> int:
    """Bound a program's shared memory: tiles of K and V on their way, queries, weights, and what little else there is."""
    # Products that read shared memory free a tile one stage later than those that read registers.
    buffers = tiles.stages if gpu.arch in WIDE else tiles.stages - 1
    columns = padded(size) * (2 * buffers * tiles.block_n + tiles.block_m)
    return itemsize * (columns + tiles.block_m * tiles.block_n) + 2048


def _fastest_tiles(rows: int, size: int, itemsize: int, gpu: Gpu, policy: SplitPolicy) -> Tiles:
    large, amd, nvidia = size > 128, gpu.arch[:3] == "gfx", gpu.arch[:3] == "sm_"
    if itemsize == 4:
        # Multiplied without tensor cores, which round float32: operands take registers as well.
        # Left to itself, ptxas aims at more programs per processor than that and spills for it, a softcap's and a
        # window's code above all: ask for three, two and one.
        warps = 4 if size <= 64 else 8 if not large or amd else 16
        limit = 168 if size <= 64 else 128
        return Tiles(16, 16, warps, 2, limit if nvidia else None)
    if size % 16:
        # A pointer for every number that is read: small tiles, or they spill.
        return Tiles(32, 32 if size <= 64 else 16, 8, 2, 255 if nvidia else None)
    # Three stages hide memory's latency with two programs per processor; shared memory holds two where rows are many
    # or long, and AMD's always does.
    stages = 2 if large or amd else 3
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
    warps = 4 if few else 8
    if large:
        # Masks of padded heads take the registers that 64 rows of 32 slots need on sm_90.
        return Tiles(block_m, 16 if gpu.arch == "sm_90" and size < 256 else 32, warps, stages)
    # As for float32; aligned powers of two keep to fewer registers by themselves.
    tight = nvidia and block_m == 16 and size != padded(size)
    return Tiles(block_m, 64, warps, stages, 168 if tight else None)


def choose_splits(programs: int, slots: int, tiles: Tiles, gpu: Gpu, policy: SplitPolicy) -> int:
    """Choose into how many parts prefixes of up to `slots` slots are cut; the same for all slots of a last split."""
    most = max(1, -(-slots // MIN_SPLIT))
    if policy == "fixed":
        return min(most, MAX_FIXED_SPLITS)
    return _cheapest_splits(programs, most, tiles.block_m, tiles.block_n, gpu)


# Bounded, for slots grow with a cache's slices.
@lru_cache(maxsize=1024)
def _cheapest_splits(programs: int, most: int, block_m: int, block_n: int, gpu: Gpu) -> int:
    # In units of one tile's time: waves of programs, each with some ten tiles' worth of start and end, then merging,
    # which reads every row of every split. Estimates, to be replaced by measurements.
    def cost(splits: int) -> float:
        waves = -(-programs * splits // gpu.processors)
        return waves * (most * MIN_SPLIT / block_n / splits + 10) + 0.22 * block_m / 16 * splits

    return min(range(1, min(most, MAX_SPLITS) + 1), key=cost)
