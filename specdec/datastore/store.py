"""Text on the disk that can be asked what followed the last tokens: a folder, mapped into memory.

    store.json    what it is: version, vocabulary, tokenizer, and per shard its counts and the SHA-256 of its files
    ID.tokens     the shard's texts, reversed: from the last token of the last text to the first of the first, each as
                  its id plus one, in 2 or 4 bytes, big-endian; a zero at both ends and between texts
    ID.order      the places in there that a token follows, 4 bytes each, little-endian, sorted by what comes before
                  them (`context_order`)

What is written takes its place with one replacement of `store.json`, so a store is the old one or the new one. Files
of a shard are never changed, only left out.
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
    """What the manifest says of a shard."""

    id: str
    """Name of its files."""
    texts: int
    tokens: int
    """Tokens of its texts, without what separates them."""
    places: int
    """Tokens that another one follows."""
    tokens_sha256: str
    order_sha256: str

    def sizes(self, itemsize: int) -> tuple[int, int]:
        """Return the bytes of both files."""
        return (self.tokens + self.texts + 1) * itemsize, 4 * self.places


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `store.json` says."""

    vocabulary_size: int
    """Ids are below it."""
    tokenizer: str | None
    """`tokenizer_fingerprint` of what made the ids; None where nobody knows."""
    shard_tokens: int
    """Most tokens of a shard."""
    shards: tuple[ShardFacts, ...]

    @property
    def tokens(self) -> int:
        """Count tokens."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def texts(self) -> int:
        """Count texts; one that is longer than a shard counts once per shard."""
        return sum(shard.texts for shard in self.shards)

    def as_json(self) -> dict[str, Any]:
        """Return what is written."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a store's description.

        Raises:
            ValueError: if there is none, or one that is damaged or of another version.
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
        """Take what `open` has checked."""
        self.path, self.manifest, self.shards = path, manifest, shards
        self.highest = max(int(shard.tokens.max()) for shard in shards) - 1
        """The highest id that occurs."""
        if self.highest >= manifest.vocabulary_size:
            raise ValueError(
                f"store: expected ids below {manifest.vocabulary_size}, as {MANIFEST} says, got {self.highest} in {path}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by opening again: mapped files cannot travel."""
        return Datastore.open, (self.path,)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Datastore:
        """Map a store into memory, after its sizes and checksums were compared.

        Raises:
            ValueError: if the folder is something else, or a file of it is missing, truncated or changed.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        try:
            return cls(path, manifest, _open_shards(path, manifest))
        except FileNotFoundError:
            # Somebody has put a newer store in its place since the manifest was read.
            manifest = Manifest.read(path)
        try:
            return cls(path, manifest, _open_shards(path, manifest))
        except FileNotFoundError as error:
            raise ValueError(
                f"store: expected all files of its shards in {path}, got none called {Path(error.filename).name}"
            ) from error

    def check(self, target: Target) -> None:
        """Raise ValueError unless the ids are those of a target's tokenizer."""
        # A tokenizer may know more ids than the model: those that occur count.
        if self.highest >= (known := target.config.vocab_size):
            raise ValueError(
                f"store: expected ids of the target, which are below {known}, got ids up to {self.highest} "
                f"in {self.path}"
            )
        self.check_tokenizer(target.tokenizer)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise ValueError if the ids are known to be another tokenizer's."""
        check_tokenizer(self.path, self.manifest, tokenizer_fingerprint(tokenizer))

    def longest(self, context: Sequence[int], most: int) -> Match:
        """Find where the longest end of a text occurs.

        Args:
            context: token ids; only the last `most` matter.
            most: longest match that counts, 1 to `CONTEXT`.

        Returns:
            The match; of length 0 if not even the last token occurs with one behind it.

        Raises:
            ValueError: if `most` is out of range.
        """
        if not 1 <= most <= CONTEXT:
            raise ValueError(f"most: expected 1 to {CONTEXT}, got {most}")
        dtype = stored_type(self.manifest.vocabulary_size)
        last = np.asarray(context[-most:], np.int64)[::-1]
        if len(last) and not 0 <= last.min() <= last.max() < self.manifest.vocabulary_size:
            # What the store cannot hold ends the match.
            known = (last >= 0) & (last < self.manifest.vocabulary_size)
            last = last[: int(known.argmin())]
        return Match.of(self.shards, (last + 1).astype(dtype).tobytes(), dtype.itemsize)


def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """Hash which text each id stands for; None for no tokenizer."""
    if tokenizer is None:
        return None
    digest = hashlib.sha256()
    for text, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{number} {text!r}\n".encode())
    return digest.hexdigest()


def check_tokenizer(path: Path, manifest: Manifest, fingerprint: str | None) -> None:
    """Raise ValueError if two tokenizers are known and differ."""
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
    """Map a file into memory, if it is what the manifest says."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise ValueError(f"store: expected {size} bytes in {path}, got {found}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    if hashlib.sha256(mapped).hexdigest() != sha256:
        raise ValueError(f"store: expected {path} as it was written, got a changed one")
    return mapped
