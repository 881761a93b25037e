"""`Datastore`: a text store on disk for REST, a folder mapped into memory.

    store.json    manifest: version, vocabulary, tokenizer, and per shard its counts and the SHA-256 of its files
    ID.tokens     the shard's texts, reversed: from the last token of the last text to the first of the first, each as
                  its id plus one, in 2 or 4 bytes, big-endian; a zero at both ends and between texts
    ID.order      positions in ID.tokens that are followed by a token, 4 bytes each, little-endian, sorted by the tokens
                  before them (`context_order`)

Replacing `store.json` is the last step of a change, so a store is always complete, old or new. Files of a shard are never
modified, only dropped.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..host.json_files import read_json
from .order import CONTEXT, Tokens, stored_type
from .search import Match, Shard

if TYPE_CHECKING:
    from ..model.target import Target

MANIFEST = "store.json"
FORMAT = "specdec datastore"
VERSION = 1
SUFFIXES = (".tokens", ".order")


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """A shard's entry in the manifest."""

    id: str
    """Name of its files."""
    texts: int
    tokens: int
    """Number of tokens, without separators."""
    places: int
    """Number of tokens that are followed by another one."""
    tokens_sha256: str
    order_sha256: str

    def sizes(self, itemsize: int) -> tuple[int, int]:
        """Return the bytes of both files."""
        return (self.tokens + self.texts + 1) * itemsize, 4 * self.places


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `store.json`."""

    vocabulary_size: int
    """Upper bound of the ids, exclusive."""
    tokenizer: str | None
    """`tokenizer_fingerprint` of the ids' tokenizer; None if unknown."""
    shard_tokens: int
    """Most tokens per shard."""
    shards: tuple[ShardFacts, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def texts(self) -> int:
        """Number of texts; a text longer than a shard counts once per shard."""
        return sum(shard.texts for shard in self.shards)

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as JSON data."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a store's manifest.

        Raises:
            ValueError: if it is missing, damaged or of another version.
        """
        if not (path / MANIFEST).is_file():
            raise ValueError(
                f"store: expected a folder that specdec datastore built, got {path} without {MANIFEST}"
            )
        fields = read_json(path / MANIFEST)
        said = {"format": fields.pop("format", None), "version": fields.pop("version", None)}
        if said != {"format": FORMAT, "version": VERSION}:
            raise ValueError(
                f"store: expected {FORMAT!r} of version {VERSION}, got {said['format']!r} of version "
                f"{said['version']!r} in {path}"
            )
        try:
            shards = tuple(ShardFacts(**shard) for shard in fields.pop("shards"))
            manifest = cls(**fields, shards=shards)
            whole = (manifest.vocabulary_size, manifest.shard_tokens, manifest.tokens)
            if min(whole) < 1 or any(Path(shard.id).name != shard.id for shard in shards):
                raise ValueError("a number or a name is out of range")
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                f"store: expected a whole {MANIFEST} in {path}, got {error}"
            ) from error
        return manifest


class Datastore:
    """An open store."""

    def __init__(self, path: Path, manifest: Manifest, shards: list[Shard]) -> None:
        """Create a store from checked parts; use `open`."""
        self.path, self.manifest, self.shards = path, manifest, shards
        self.highest = max(int(shard.tokens.max()) for shard in shards) - 1
        """The highest id in the texts."""
        if self.highest >= manifest.vocabulary_size:
            raise ValueError(
                f"store: expected ids below {manifest.vocabulary_size}, as {MANIFEST} says, got {self.highest} in {path}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by opening again, as mapped files cannot be copied."""
        return Datastore.open, (self.path,)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Datastore:
        """Check sizes and checksums of a store, and map it into memory.

        Raises:
            ValueError: if the folder is not a store, or a file is missing, truncated or changed.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        try:
            return cls(path, manifest, _open_shards(path, manifest))
        except FileNotFoundError:
            # The store was replaced by a newer one after its manifest was read.
            manifest = Manifest.read(path)
        try:
            return cls(path, manifest, _open_shards(path, manifest))
        except FileNotFoundError as error:
            raise ValueError(
                f"store: expected all files of its shards in {path}, got no {Path(error.filename).name}"
            ) from error

    def check(self, target: Target) -> None:
        """Raise ValueError unless the ids are of the target's tokenizer."""
        # A tokenizer may have more ids than the model; only ids that occur count.
        if self.highest >= (known := target.config.vocab_size):
            raise ValueError(
                f"store: expected ids of the target, which are below {known}, got ids up to {self.highest} "
                f"in {self.path}"
            )
        self.check_tokenizer(target.tokenizer)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise ValueError if the ids are known to be of another tokenizer."""
        check_tokenizer(self.path, self.manifest, tokenizer_fingerprint(tokenizer))

    def longest(self, context: Sequence[int], most: int) -> Match:
        """Find the occurrences of a text's longest suffix.

        Args:
            context: token ids; only the last `most` are used.
            most: length of the longest match, 1 to `CONTEXT`.

        Returns:
            The match; of length 0 if the last token never occurs before another one.

        Raises:
            ValueError: if `most` is out of range.
        """
        if not 1 <= most <= CONTEXT:
            raise ValueError(f"most: expected 1 to {CONTEXT}, got {most}")
        dtype = stored_type(self.manifest.vocabulary_size)
        last = np.asarray(context[-most:], np.int64)[::-1]
        if len(last) and not 0 <= last.min() <= last.max() < self.manifest.vocabulary_size:
            # An id outside the store's vocabulary ends the match.
            known = (last >= 0) & (last < self.manifest.vocabulary_size)
            last = last[: int(known.argmin())]
        return Match.of(self.shards, (last + 1).astype(dtype).tobytes(), dtype.itemsize)


def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """Return a hash of the tokenizer's vocabulary; None without a tokenizer."""
    if tokenizer is None:
        return None
    digest = hashlib.sha256()
    for text, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{number} {text!r}\n".encode())
    return digest.hexdigest()


def check_tokenizer(path: Path, manifest: Manifest, fingerprint: str | None) -> None:
    """Raise ValueError if both tokenizers are known and differ."""
    if None not in (fingerprint, manifest.tokenizer) and fingerprint != manifest.tokenizer:
        raise ValueError(
            f"store: expected ids of the tokenizer {str(fingerprint)[:16]}, got those of "
            f"{str(manifest.tokenizer)[:16]} in {path}"
        )


def _open_shards(path: Path, manifest: Manifest) -> list[Shard]:
    dtype = stored_type(manifest.vocabulary_size)
    shards = []
    for facts in manifest.shards:
        sums = facts.tokens_sha256, facts.order_sha256
        tokens, order = (
            _mapped(path / f"{facts.id}{suffix}", size, sum_)
            for suffix, size, sum_ in zip(SUFFIXES, facts.sizes(dtype.itemsize), sums, strict=True)
        )
        places: npt.NDArray[np.uint32] = np.frombuffer(order, "<u4").astype(np.uint32, copy=False)
        stored: Tokens = np.frombuffer(tokens, dtype)
        shards.append(Shard(tokens, stored, places.data, places))
    return shards


def _mapped(path: Path, size: int, sha256: str) -> mmap.mmap | bytes:
    """Check a file against the manifest, and map it into memory."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise ValueError(f"store: expected {size} bytes in {path}, got {found}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    if hashlib.sha256(mapped).hexdigest() != sha256:
        raise ValueError(f"store: expected {path} unchanged, got another checksum")
    return mapped
