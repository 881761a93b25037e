"""The command `datastore`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..host.progress import progress
from ..sources.embedded import DEFAULT_MODEL
from .options import ModelOption, RevisionOption, TrustOption, between, home
from .terminal import console, help_alone, messages

app = typer.Typer(help="Build and check text stores for the drafter rest.")
app.callback(invoke_without_command=True)(help_alone)


@app.command()
def build(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Text files, JSONL (.jsonl, .jsonl.gz), or stores of specdec data.", callback=home
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the new store.", callback=home)
    ],
    add: Annotated[bool, typer.Option("--add", help="Add to the store if it exists.")] = False,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    field: Annotated[str, typer.Option(help="JSONL field with the text.")] = "text",
    shard_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens per shard of a new store. Default: 33,554,432. Sorting takes 60 bytes per token.",
            callback=between(1, 2**30),
        ),
    ] = None,
) -> None:
    """Build a store from FILES with the tokenizer of --model; draft from it with --drafter rest:STORE."""
    for path in files:
        if not path.is_file() or not os.access(path, os.R_OK):
            raise ValueError(
                f"files: expected readable text, JSONL, or a store of specdec data, got {path}"
            )

    from ..datastore.build import build_datastore, check_place
    from ..datastore.sources import texts_of_file, vocabulary_size
    from ..datastore.store import tokenizer_fingerprint
    from ..sources.models import load_tokenizer

    check_place(out, "out", add=add)
    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    done = 0

    def texts() -> Iterator[list[int]]:
        nonlocal done
        for done, path in enumerate(files):  # noqa: B007
            yield from texts_of_file(path, tokenizer, field)
        done = len(files)

    with progress() as show:
        manifest = build_datastore(
            out,
            texts(),
            vocabulary_size=vocabulary_size(tokenizer),
            tokenizer=tokenizer_fingerprint(tokenizer),
            add=add,
            shard_tokens=shard_tokens,
            progress=lambda what, tokens: show(what, done, len(files), f"{tokens:,} tokens"),
        )
    messages.print(
        f"{out}: {manifest.tokens:,} tokens in {manifest.texts:,} texts", markup=False, emoji=False
    )


@app.command()
def info(
    store: Annotated[Path, typer.Argument(help="Folder of a store.", callback=home)],
) -> None:
    """Check a store and print its size, shards and tokenizer."""
    from ..datastore.store import Datastore

    manifest = Datastore.open(store).manifest
    table = Table(show_header=False)
    table.add_row("tokens", f"{manifest.tokens:,}")
    table.add_row("texts", f"{manifest.texts:,}")
    table.add_row("shards", f"{len(manifest.shards)} of at most {manifest.shard_tokens:,} tokens")
    table.add_row("ids", f"below {manifest.vocabulary_size:,}")
    table.add_row("tokenizer", (manifest.tokenizer or "unknown")[:16])
    files = [file for file in store.iterdir() if file.is_file()]
    table.add_row("bytes", f"{sum(file.stat().st_size for file in files):,}")
    console.print(table)
