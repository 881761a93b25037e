"""Tile sizes and numbers of splits; they depend on shapes and the GPU only, so a captured graph fits all prefixes."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from ..gpu import Gpu

SplitPolicy = Literal["auto", "fixed"]
SPLIT_POLICIES = get_args(SplitPolicy)
MIN_SPLIT = 256
"""Least slots per split; smaller splits are not worth merging."""
MAX_SPLITS = 64
MAX_FIXED_SPLITS = 32
"""Most splits with the policy "fixed": 256 slots each for prefixes of up to 8192 slots, whatever the cache's size."""
WIDE = ("sm_90", "sm_100", "sm_103")
"""Architectures whose products read operands from shared memory, so that more rows fit into registers."""


class Tiles(NamedTuple):
    """Tile sizes and launch options of one program."""

    block_m: int
    """Rows: query heads of one group, for one or more nodes."""
    block_n: int
    """Slots read at a time; at most one word of ancestors (64)."""
    warps: int
    stages: int
    registers: int | None = None
    """Most registers per thread (NVIDIA only); None leaves it to the compiler."""

    def options(self) -> dict[str, int]:
        """Return the options of a launch."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {
            **limit,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def padded(size: int) -> int:
    """Return the columns of a head of `size` numbers in a tile: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


@lru_cache(maxsize=1024)
def choose_tiles(rows: int, size: int, itemsize: int, gpu: Gpu, policy: SplitPolicy) -> Tiles:
    """Choose tiles for `rows` rows of `size` numbers; with fixed splits the same for any number of rows."""
    tiles = _fastest_tiles(rows, size, itemsize, gpu, policy)
    while tiles.stages > 2 and _shared_bytes(tiles, size, itemsize, gpu) > gpu.shared_bytes:
        tiles = tiles._replace(stages=tiles.stages - 1)
    while tiles.block_n > 16 and _shared_bytes(tiles, size, itemsize, gpu) > gpu.shared_bytes:
        tiles = tiles._replace(block_n=tiles.block_n // 2)
    return tiles


def _shared_bytes(tiles: Tiles, size: int, itemsize: int, gpu: Gpu) -> int:
    """Return a bound of a program's shared memory: tiles of K and V in flight, queries, weights and a small rest."""
    # Products that read shared memory free a tile one stage later than products that read registers.
    buffers = tiles.stages if gpu.arch in WIDE else tiles.stages - 1
    columns = padded(size) * (2 * buffers * tiles.block_n + tiles.block_m)
    return itemsize * (columns + tiles.block_m * tiles.block_n) + 2048


def _fastest_tiles(rows: int, size: int, itemsize: int, gpu: Gpu, policy: SplitPolicy) -> Tiles:
    large, amd, nvidia = size > 128, gpu.arch[:3] == "gfx", gpu.arch[:3] == "sm_"
    if itemsize == 4:
        # Tensor cores would round float32, so products run without them, and operands take registers too.
        # By default ptxas aims at more programs per processor and spills, mostly with soft-cap and window; the limits
        # below ask for three, two and one.
        warps = 4 if size <= 64 else 8 if not large or amd else 16
        limit = 168 if size <= 64 else 128
        return Tiles(16, 16, warps, 2, limit if nvidia else None)
    if size % 16:
        # Every number read needs a pointer, so larger tiles would spill.
        return Tiles(32, 32 if size <= 64 else 16, 8, 2, 255 if nvidia else None)
    # With two programs per processor, three stages hide memory latency. Shared memory holds only two if rows are many or
    # long, and on AMD always.
    stages = 2 if large or amd else 3
    wide = gpu.arch in WIDE
    most = (64 if wide else 32) if large else (128 if wide else 64)
    wanted = 64 if policy == "fixed" else max(16, 1 << (rows - 1).bit_length())
    block_m = min(wanted, most)
    if block_m == 128:
        return Tiles(128, 64, 8, 2)
    if block_m == 16:
        stages = (
            2  # registers allow three or four programs; with three stages D = 128 spills on sm_90
        )
    # 4 warps if they suffice: more programs per processor mean more loads in flight.
    few = block_m == 16 or (not large and (block_m == 32 or gpu.arch == "sm_90"))
    warps = 4 if few else 8
    if large:
        # On sm_90, masks of padded heads take the registers that 64 rows of 32 slots need.
        return Tiles(block_m, 16 if gpu.arch == "sm_90" and size < 256 else 32, warps, stages)
    # As for float32. Aligned powers of two need fewer registers anyway.
    tight = nvidia and block_m == 16 and size != padded(size)
    return Tiles(block_m, 64, warps, stages, 168 if tight else None)


def choose_splits(programs: int, slots: int, tiles: Tiles, gpu: Gpu, policy: SplitPolicy) -> int:
    """Choose the number of splits of prefixes of up to `slots` slots; equal for all lengths within the last split."""
    most = max(1, -(-slots // MIN_SPLIT))
    if policy == "fixed":
        return min(most, MAX_FIXED_SPLITS)
    return _cheapest_splits(programs, most, tiles.block_m, tiles.block_n, gpu)


# Bounded, as the number of slots grows with the text.
@lru_cache(maxsize=1024)
def _cheapest_splits(programs: int, most: int, block_m: int, block_n: int, gpu: Gpu) -> int:
    # In units of one tile's time: waves of programs, each with about ten tiles of overhead, then merging, which reads
    # every row of every split. These are estimates, not measured on a GPU.
    def cost(splits: int) -> float:
        waves = -(-programs * splits // gpu.processors)
        return waves * (most * MIN_SPLIT / block_n / splits + 10) + 0.22 * block_m / 16 * splits

    return min(range(1, min(most, MAX_SPLITS) + 1), key=cost)
