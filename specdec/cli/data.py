"""The command `data`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from ..evaluate.questions import read_questions
from ..host.progress import progress
from ..host.whole_file import check_file
from ..sources.embedded import DEFAULT_MODEL
from .options import (
    MAX_THREADS,
    MAX_TRAINING_SEED,
    DeviceOption,
    DType,
    ModelOption,
    RevisionOption,
    TrustOption,
    between,
    home,
)
from .terminal import console, messages

if TYPE_CHECKING:
    from ..model.target import Target
    from ..selftext.overlap import Overlap
    from .loading import ModelChoice

AppendOption = Annotated[
    Path | None,
    typer.Option("--append", help="Store to write to; created if missing.", callback=home),
]


def data(
    store: AppendOption = None,
    tokens: Annotated[
        int, typer.Option(help="Answer tokens to generate with this seed.", callback=between(1))
    ] = 1_000_000,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of user turns to answer (key text, prompt or turns). Default: the model writes them.",
            callback=home,
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            help="Questions in Spec-Bench's format; text that shares 13 consecutive words with them is dropped.",
            callback=home,
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            help="Stores or JSONL files to copy in, instead of generating text.", callback=home
        ),
    ] = None,
    stats: Annotated[
        list[Path] | None,
        typer.Option(help="Print statistics of these stores or JSONL files.", callback=home),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(help="Conversations generated at the same time.", callback=between(1, 65536)),
    ] = 128,
    answer_tokens: Annotated[
        int, typer.Option(help="Most tokens per answer.", callback=between(1))
    ] = 512,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the generated text.", callback=between(0, MAX_TRAINING_SEED)),
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads. Default: all cores.", callback=between(1, MAX_THREADS)),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Generate training data with the target model (--append STORE), or describe it (--stats FILE)."""
    if (store is None) == (not stats):
        raise ValueError("data: expected either --append or --stats, got both or neither")
    if prompts and (merge or stats):
        raise ValueError(f"prompts: expected none with --merge or --stats, got {prompts}")
    if merge and stats:
        raise ValueError(f"merge: expected none with --stats, got {merge[0]}")
    for name, paths in (("merge", merge), ("stats", stats)):
        for path in paths or []:
            if not path.is_file() or not os.access(path, os.R_OK):
                raise ValueError(f"{name}: expected a readable store or JSONL file, got {path}")
    texts = [text for path in exclude or [] for q in read_questions(path) for text in q.turns]
    if store is not None:
        check_file(store, "append")

    from ..selftext.conversation import read_turns
    from ..selftext.overlap import Overlap
    from .loading import ModelChoice

    turns = None if prompts is None else read_turns(prompts)
    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=DType.bfloat16, device=device, threads=threads
    )
    overlap = Overlap.of(texts)
    if stats:
        _show(stats, choice, overlap)
    elif store is not None:
        _append(
            store, choice.target(), overlap, merge or [], turns,
            tokens=tokens, batch=batch, answer_tokens=answer_tokens, seed=seed,
        )  # fmt: skip


def _append(
    path: Path,
    target: Target,
    overlap: Overlap,
    merged: list[Path],
    turns: list[str] | None,
    *,
    tokens: int,
    batch: int,
    answer_tokens: int,
    seed: int,
) -> None:
    from ..checkpoints import TargetFacts
    from ..selftext.store import Store
    from ..selftext.supply import Sieve, merge, write_self_text
    from ..selftext.writer import SelfWriter

    writer = SelfWriter(target, batch=batch, answer_tokens=answer_tokens, seed=seed)
    writer.check_turns(turns or [])
    facts = asdict(TargetFacts.of(target))
    with progress() as show, Store.write(path, facts) as store:
        sieve = Sieve(store, overlap)
        for other in merged:
            show(f"reading {other}", 0, 1, "")
            added = merge(other, store, sieve, writer.template)
            messages.print(f"{path}: {added} conversations from {other}", markup=False)
        if not merged:
            write_self_text(
                writer, store, sieve, tokens=tokens, turns=turns,
                progress=lambda written: show("writing", min(written, tokens), tokens, ""),
            )  # fmt: skip


def _show(paths: list[Path], choice: ModelChoice, overlap: Overlap) -> None:
    """Print statistics of files side by side."""
    from ..selftext.conversation import read_records
    from ..selftext.statistics import Statistics
    from ..selftext.template import Template
    from ..sources.models import load_tokenizer

    tokenizer = load_tokenizer(
        choice.name, revision=choice.revision, trust_remote_code=choice.trust_remote_code
    )
    template = Template.of(tokenizer)
    described, overlapping = [], []
    with progress() as show:
        for path in paths:
            show(f"reading {path}", 0, 1, "")
            records = list(read_records(path, tokenizer))
            described.append(Statistics.of(records))
            overlapping.append(
                sum(
                    any(text in overlap for text in template.texts_of(r.ids, r.spans))
                    for r in records
                    if r.ids and overlap.ngrams
                )
            )
    table = Table("", *(Column(Text(str(path)), overflow="fold") for path in paths))
    lines = [d.lines() for d in described]
    for name in dict.fromkeys(name for of_file in lines for name in of_file):
        table.add_row(name, *(of_file.get(name, "") for of_file in lines))
    if overlap.ngrams:
        table.add_row("share 13 words with --exclude", *map(str, overlapping))
    console.print(table)
