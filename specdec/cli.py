"""The command line: generate, chat, bench, info, data, train, convert."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedModel

from . import __version__
from .checkpoints.command import convert
from .drafters import BEST, best_drafter, check_drafter_name
from .evaluate.benchmark import (
    Benchmark,
    Prompt,
    chat_prompts,
    check_chat_template,
    check_questions,
    run_benchmark,
)
from .evaluate.methods import PLAIN, TRANSFORMERS, Runner, check_methods
from .evaluate.questions import Question, read_questions
from .evaluate.report import benchmark_tables, metrics_table
from .loading import load_target
from .metrics import Metrics
from .models import DEFAULT_MODEL, EMBEDDED, load_model
from .packed_linear import can_pack
from .sampling import Greedy, Picker, new_sampling, sampler
from .session import MAX_NODES, Session, check_max_nodes, end_tokens
from .streaming import Detokenizer
from .target import Target
from .train import commands as training
from .whole_file import whole_file

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The same text in fewer passes: lossless speculative decoding for Hugging Face models.",
)
app.command()(training.data)
app.add_typer(training.app, name="train")
app.command()(convert)
console = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)

DRAFTED, OWN = "green", "default"
DEMO_PROMPT = (
    "Rewrite this paragraph with every sentence on its own line, and change nothing else: "
    "The heart pumps blood through the body. The blood carries oxygen from the lungs to the muscles. "
    "The muscles use the oxygen to release energy. The blood then carries carbon dioxide from the "
    "muscles back to the lungs, and the lungs breathe it out."
)


class DType(StrEnum):
    """Precisions of the weights."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str, typer.Option(help=f"{' or '.join(EMBEDDED)} (embedded), a hub id, or a folder.")
]
DrafterOption = Annotated[
    str,
    typer.Option(
        help="best, none, lookup, redrafter, kangaroo, mixed, a folder, or several joined by +."
    ),
]
DTypeOption = Annotated[DType, typer.Option(help="Precision of the weights.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, mps, cuda, cuda:1, …")]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Bit-exact in bfloat16, where this machine can.")
]
NodesOption = Annotated[int, typer.Option(help="Most nodes verified per round, 1 to 256.")]
NewTokensOption = Annotated[int, typer.Option(help="Most new tokens.")]
TemperatureOption = Annotated[
    float, typer.Option(help="Draw tokens at this temperature; 0 takes the best.")
]
TopPOption = Annotated[float, typer.Option(help="Draw from the likeliest tokens of this mass.")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to ask; - reads standard input.")
    ] = DEMO_PROMPT,
    model: ModelOption = DEFAULT_MODEL,
    drafter: DrafterOption = "best",
    max_new_tokens: NewTokensOption = 128,
    max_nodes: NodesOption = MAX_NODES,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    exact: ExactOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text; no chat template.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run the plain loop and transformers.")
    ] = False,
) -> None:
    """Write an answer, the accepted draft tokens in green, then say how it went."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise ValueError("prompt: expected some text, got none")
    if compare and temperature:
        raise ValueError(
            f"compare: expected temperature 0, as greedy texts are compared, got {temperature}"
        )
    _check_sampling(temperature, top_p, seed)
    session = _session(model, drafter, max_nodes, dtype, device, exact)
    target = session.target
    picker = _picker(target, temperature, top_p, seed)
    drafter = best_drafter(target) if drafter == BEST else drafter
    if raw:
        ids = target.tokenizer(text)["input_ids"]
    else:
        ids = _chat_ids(target, [{"role": "user", "content": text}])
        console.print(text, style="bold", markup=False, emoji=False)
    _, metrics = _show(session, ids, max_new_tokens, picker)
    _legend()

    console.print(metrics_table(metrics, f"{drafter}, {dtype}"))
    if compare:
        prompt_ids = Prompt(Question(0, "prompt", [text]), 0, ids, lambda tokens: None)
        _compare(
            target, model, [prompt_ids], [drafter, PLAIN, TRANSFORMERS], max_new_tokens, max_nodes
        )


@app.command()
def chat(
    model: ModelOption = DEFAULT_MODEL,
    drafter: DrafterOption = "best",
    max_new_tokens: NewTokensOption = 512,
    max_nodes: NodesOption = MAX_NODES,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    exact: ExactOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
) -> None:
    """Talk with the model; what was read stays cached. An empty line ends it."""
    _check_sampling(temperature, top_p, seed)
    session = _session(model, drafter, max_nodes, dtype, device, exact)
    picker = _picker(session.target, temperature, top_p, seed)
    history: list[dict[str, str]] = []
    _legend()
    while True:
        try:
            line = console.input("[bold]you: [/bold]").strip()
        except EOFError:
            return
        if not line:
            return
        history.append({"role": "user", "content": line})
        tokens, metrics = _show(session, _chat_ids(session.target, history), max_new_tokens, picker)
        answer = session.target.tokenizer.decode(tokens, skip_special_tokens=True)
        history.append({"role": "assistant", "content": answer})
        console.print(
            f"{metrics.tokens_per_second:.1f} tokens/s, {metrics.tokens_per_round:.2f} per round",
            style="dim",
        )


@app.command()
def bench(
    prompts: Annotated[Path, typer.Option(help="Questions in Spec-Bench's JSONL format.")],
    methods: Annotated[
        str, typer.Option(help="plain, transformers, transformers-lookup and drafters, by commas.")
    ] = "plain,transformers,transformers-lookup,lookup",
    limit: Annotated[int | None, typer.Option(help="Most questions.")] = None,
    per_category: Annotated[int | None, typer.Option(help="Most questions of a category.")] = None,
    turns: Annotated[int, typer.Option(help="Most turns of a question.")] = 1,
    max_new_tokens: NewTokensOption = 128,
    max_nodes: NodesOption = MAX_NODES,
    model: ModelOption = DEFAULT_MODEL,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    exact: ExactOption = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to save every run.")
    ] = None,
) -> None:
    """Compare methods on the same prompts, alternating, tokens always checked; exit code 1 if any differ."""
    names = list(dict.fromkeys(methods.split(",")))
    check_methods(names)
    for name, value in (
        ("limit", limit), ("per_category", per_category), ("turns", turns),
        ("max_new_tokens", max_new_tokens),
    ):  # fmt: skip
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise ValueError(f"json: expected a file in an existing folder, got {json_file}")
    questions = read_questions(prompts, limit=limit, per_category=per_category)
    target = _session(model, "none", max_nodes, dtype, device, exact).target
    check_questions(target, questions)
    asked = chat_prompts(target.tokenizer, questions, turns)
    total = sum(len(question.turns[:turns]) for question in questions)
    result = _compare(target, model, asked, names, max_new_tokens, max_nodes, total)
    if json_file is not None:
        with whole_file(json_file) as scratch:
            scratch.write_text(json.dumps(result.as_json(), indent=1))
    if not result.lossless:
        messages.print("specdec: answers differ beyond the tie rule", style="red")
        raise typer.Exit(1)


@app.command()
def info(model: ModelOption = DEFAULT_MODEL) -> None:
    """Say what is installed, what this machine can do, and what the model is."""
    table = Table(show_header=False)
    table.add_row("specdec", __version__)
    table.add_row("python", platform.python_version())
    table.add_row("torch", torch.__version__)
    table.add_row("transformers", transformers.__version__)
    devices = ["cpu"]
    devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    table.add_row("devices", ", ".join(devices))
    table.add_row("threads", str(torch.get_num_threads()))
    packable = [d for d in (DType.float32, DType.bfloat16) if can_pack(getattr(torch, d))]
    table.add_row("packed linears", ", ".join(packable) or "none")
    for precision in (DType.float32, DType.bfloat16):
        possible = "yes"
        try:
            load_target(model, dtype=getattr(torch, precision), exact=True)
        except ValueError as error:
            if not str(error).startswith("exact"):
                raise
            possible = "no"
        table.add_row(f"exact {precision}", possible)
    target = load_target(model)
    parameters = sum(p.numel() for p in target.model.parameters())
    table.add_row("model", f"{model}: {type(target.model).__name__}, {parameters / 1e6:.0f} M")
    table.add_row("positions", str(target.position_limit))
    console.print(table)


def _session(
    model: str, drafter: str, max_nodes: int, dtype: DType, device: str, exact: bool
) -> Session:
    check_max_nodes(max_nodes)
    check_drafter_name(drafter)  # before seconds are spent on the model
    target = load_target(model, dtype=getattr(torch, dtype), device=_device(device), exact=exact)
    return Session(target, drafter, max_nodes=max_nodes)


def _check_sampling(temperature: float, top_p: float, seed: int | None) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature: expected at least 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected above 0 to 1, got {top_p}")
    if temperature == 0:
        for name, value, unset in (("seed", seed, None), ("top_p", top_p, 1.0)):
            if value != unset:
                raise ValueError(f"{name}: expected none at temperature 0, got {value}")


def _picker(target: Target, temperature: float, top_p: float, seed: int | None) -> Picker:
    if temperature == 0:
        return Greedy()
    settings = {"temperature": temperature, "top_p": top_p}
    return sampler(new_sampling(seed, [0], target.device, **settings), target)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected one of this machine's, got {name!r} ({reason})"
        ) from error
    return device


def _stock_model(target: Target, model: str) -> PreTrainedModel:
    """Load the model again, as the library gives it and without anything prepared."""
    return load_model(model, dtype=target.dtype, device=target.device)[0]


def _chat_ids(target: Target, history: list[dict[str, str]]) -> list[int]:
    check_chat_template(target.tokenizer)
    encoded = target.tokenizer.apply_chat_template(history, add_generation_prompt=True)
    ids: list[int] = encoded["input_ids"]
    return ids


def _show(
    session: Session, ids: list[int], max_new_tokens: int, picker: Picker
) -> tuple[list[int], Metrics]:
    """Stream an answer to the terminal."""
    metrics = Metrics()
    tokens: list[int] = []
    text = Detokenizer(session.target.tokenizer)
    rounds = session.stream(
        [ids],
        max_new_tokens=max_new_tokens,
        eos_token_ids=end_tokens(session.target.model.generation_config),
        picker=picker,
        metrics=metrics,
    )
    for (emitted,) in rounds:
        tokens += emitted.tokens
        for place, token in enumerate(emitted.tokens):
            style = DRAFTED if place < emitted.drafted else OWN
            console.print(text.add(token), style=style, end="", markup=False, emoji=False)
        console.file.flush()
    console.print()
    return tokens, metrics


def _legend() -> None:
    console.print(
        f"[{DRAFTED}]green[/]: drafted and accepted   default: the target's own", style="dim"
    )


def _compare(
    target: Target,
    model: str,
    prompts: Iterable[Prompt],
    methods: list[str],
    max_new_tokens: int,
    max_nodes: int,
    count: int = 1,
) -> Benchmark:
    """Run methods on `count` prompts, show how far it is and what came out."""
    methods = list(dict.fromkeys([PLAIN, *methods]))
    library = any(method.startswith(TRANSFORMERS) for method in methods)
    runner = Runner(
        target,
        _stock_model(target, model) if library else None,
        max_nodes=max_nodes,
        eos=end_tokens(target.model.generation_config),
    )
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=messages, transient=True) as bar:
        task = bar.add_task("runs", total=count * len(methods), now="")
        result = run_benchmark(
            runner,
            prompts,
            methods,
            max_new_tokens=max_new_tokens,
            load_model64=lambda: _stock_model(target, model).cpu().double(),
            progress=lambda question, method: bar.update(
                task, advance=1, now=f"{question.category} {question.question_id}: {method}"
            ),
        )
    for table in benchmark_tables(result)[: None if count > 1 else 2]:
        console.print(table)
    return result


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    try:
        app()
    except ValueError as error:
        messages.print(f"specdec: {error}", style="red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
