"""The command line's `data` and `train`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..drafters.kangaroo import KangarooConfig
from ..drafters.redrafter import ReDrafterConfig
from ..evaluate.questions import read_questions
from ..loading import load_target
from ..models import DEFAULT_MODEL
from ..target import Target
from .data import Overlap, SelfWriter, read_turns, write_data
from .loop import Schedule
from .run import Recipe, train_drafter

messages = Console(stderr=True, highlight=False, soft_wrap=True)
app = typer.Typer(
    no_args_is_help=True,
    help="Train a drafter on text that its target wrote; goes on after a kill.",
)

ModelOption = Annotated[str, typer.Option(help="The target: a name, a hub id, or a folder.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; all cores if not given.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, mps, cuda, …")]
DataArgument = Annotated[list[Path], typer.Argument(help="JSONL files from specdec data.")]
OutOption = Annotated[Path, typer.Option(help="Where the drafter goes.")]
RunOption = Annotated[Path, typer.Option(help="Where an unfinished training is kept.")]
FeaturesOption = Annotated[
    Path | None, typer.Option(help="Hidden states that several trainings share.")
]
ExitsOption = Annotated[
    str, typer.Option(help="Exit layers to collect for trainings to come, by commas.")
]
VocabularyOption = Annotated[
    int, typer.Option(help="Tokens that can be drafted, the most frequent ones; 0 for all.")
]
EpochsOption = Annotated[int, typer.Option(help="Passes over the data.")]
BatchOption = Annotated[int, typer.Option(help="Positions (ReDrafter) or texts (Kangaroo) a step.")]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.")]
SeedOption = Annotated[int, typer.Option(help="Of weights and order.")]
HeldOutOption = Annotated[int, typer.Option(help="First texts of the data, to validate on.")]


def data(
    out: Annotated[Path, typer.Argument(help="JSONL file; continued if it is there.")],
    tokens: Annotated[int, typer.Option(help="Answer tokens wanted.")] = 1_000_000,
    model: ModelOption = DEFAULT_MODEL,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of user turns to answer (text, prompt or turns); own ones if not given."
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help="Questions in Spec-Bench's format that must stay out of the data."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Conversations written at once.")] = 64,
    answer_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 224,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Let the target write its own training data."""
    for name, value in (("tokens", tokens), ("batch", batch), ("answer_tokens", answer_tokens)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    turns = None if prompts is None else read_turns(prompts)
    kept_out = [text for path in exclude or [] for q in read_questions(path) for text in q.turns]
    target = _target(model, threads, device)
    writer = SelfWriter(
        target.model, target.tokenizer, batch=batch, answer_tokens=answer_tokens, seed=seed
    )
    with _bar() as show:
        write_data(
            writer,
            out,
            tokens=tokens,
            exclude=Overlap.of(kept_out),
            turns=turns,
            progress=lambda written: show("writing", min(written, tokens), tokens, {}),
        )


@app.command()
def redrafter(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    exit_dim: Annotated[
        int | None, typer.Option(help="Width of the blocks; twice the target's if not given.")
    ] = None,
    residual_blocks: Annotated[int, typer.Option(help="How many blocks.")] = 2,
    own_head: Annotated[
        bool, typer.Option("--own-head", help="A head of its own, as in the paper.")
    ] = False,
    length: Annotated[int, typer.Option(help="Tokens ahead that are learned.")] = 5,
    beam_width: Annotated[int, typer.Option(help="Beams, when it drafts.")] = 8,
    least: Annotated[
        float, typer.Option(help="Probability under which a node is not verified.")
    ] = 0.03,
    least_step: Annotated[
        float, typer.Option(help="Probability of all beams under which drafting ends.")
    ] = 0.15,
    labels: Annotated[
        str, typer.Option(help="distribution or greedy, of the target.")
    ] = "distribution",
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 512,
    learning_rate: RateOption = 2e-3,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a ReDrafter by local distillation."""
    target = _target(model, threads, device)
    width = target.config.hidden_size
    config = ReDrafterConfig(
        hidden_size=width,
        exit_dim=2 * width if exit_dim is None else exit_dim,
        residual_blocks=residual_blocks,
        tied_head=not own_head,
        trained_length=length,
        draft_length=length,
        beam_width=beam_width,
        least=least,
        least_step=least_step,
    )
    recipe = Recipe(
        Schedule(epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed),
        draft_vocabulary=draft_vocabulary or None,
        held_out=held_out,
        labels=labels,
    )
    _train(target, config, data, run, out, recipe, features, exit_layers)


@app.command()
def kangaroo(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    exit_layer: Annotated[int, typer.Option(help="Layers that draft.")] = 2,
    kv_heads: Annotated[
        int | None, typer.Option(help="As many as query heads if not given.")
    ] = None,
    eta: Annotated[
        float, typer.Option(help="Probability under which a token is a draft's last.")
    ] = 0.6,
    gamma: Annotated[int, typer.Option(help="Most tokens of a draft.")] = 6,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 8,
    learning_rate: RateOption = 1e-2,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a Kangaroo adapter by self-distillation."""
    target = _target(model, threads, device)
    heads = target.config.num_attention_heads
    config = KangarooConfig(
        hidden_size=target.config.hidden_size,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=target.config.hidden_size // heads,
        exit_layer=exit_layer,
        eta=eta,
        gamma=gamma,
    )
    recipe = Recipe(
        Schedule(epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed),
        draft_vocabulary=draft_vocabulary or None,
        held_out=held_out,
    )
    _train(target, config, data, run, out, recipe, features, exit_layers)


def _train(
    target: Target,
    config: ReDrafterConfig | KangarooConfig,
    data: list[Path],
    run: Path,
    out: Path,
    recipe: Recipe,
    features: Path | None,
    exit_layers: str,
) -> None:
    try:
        layers = [int(layer) for layer in exit_layers.split(",") if layer]
    except ValueError as error:
        raise ValueError(f"exit_layers: expected numbers by commas, got {exit_layers!r}") from error
    with _bar() as show:
        log = train_drafter(
            target, config, data, run, out, recipe,
            features=features, exit_layers=layers, progress=show,
        )  # fmt: skip
    last = next(line["validation"] for line in reversed(log) if "validation" in line)
    messages.print(f"{out}: {json.dumps({k: round(v, 3) for k, v in last.items()})}")


def _target(model: str, threads: int | None, device: str) -> Target:
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    return load_target(model, dtype=torch.bfloat16, device=device)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int, dict[str, float]], None]]:
    """Show what is done of what, and the latest figures; one line each where nobody watches."""
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as bar:
        task = bar.add_task("", total=None, figures="")

        def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            shown = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            bar.update(task, description=what, completed=done, total=total, figures=shown)
            if not messages.is_terminal:
                messages.print(f"{what} {done}/{total} {shown}".rstrip())

        yield show
