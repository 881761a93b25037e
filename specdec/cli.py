"""The command line: generate, chat, bench, info."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import __version__
from .drafters import load_drafter
from .evaluate.benchmark import run_benchmark
from .evaluate.methods import PLAIN, TRANSFORMERS, Runner, check_methods
from .evaluate.questions import Question, read_questions
from .evaluate.replay import replay
from .evaluate.report import benchmark_tables, metrics_table
from .loading import load_target
from .metrics import Metrics
from .models import load_model
from .packed_linear import can_pack
from .session import Session, check_max_nodes
from .target import Target

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The same text in fewer passes: lossless speculative decoding for Hugging Face models.",
)
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
    str, typer.Option(help="smollm2-135m-instruct (embedded), a hub id, or a folder.")
]
DrafterOption = Annotated[str, typer.Option(help="none, lookup, or several joined by +.")]
DTypeOption = Annotated[DType, typer.Option(help="Precision of the weights.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, mps, cuda, cuda:1, …")]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Bit-exact in bfloat16, where this machine can.")
]
NodesOption = Annotated[int, typer.Option(help="Most nodes verified per round, 1 to 256.")]
NewTokensOption = Annotated[int, typer.Option(help="Most new tokens.")]


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to ask; - reads standard input.")
    ] = DEMO_PROMPT,
    model: ModelOption = "smollm2-135m-instruct",
    drafter: DrafterOption = "lookup",
    max_new_tokens: NewTokensOption = 128,
    max_nodes: NodesOption = 16,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    exact: ExactOption = False,
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
    session = _session(model, drafter, max_nodes, dtype, device, exact)
    target = session.target
    if raw:
        ids = target.tokenizer(text)["input_ids"]
    else:
        ids = _chat_ids(target, [{"role": "user", "content": text}])
        console.print(text, style="bold")
    tokens, metrics = _show(session, ids, max_new_tokens)
    _legend()

    console.print(metrics_table(metrics, f"{drafter}, {dtype}"))
    if compare:
        _compare(session, model, ids, tokens, metrics, max_new_tokens, drafter)


@app.command()
def chat(
    model: ModelOption = "smollm2-135m-instruct",
    drafter: DrafterOption = "lookup",
    max_new_tokens: NewTokensOption = 512,
    max_nodes: NodesOption = 16,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    exact: ExactOption = False,
) -> None:
    """Talk with the model; what was read stays cached. An empty line ends it."""
    session = _session(model, drafter, max_nodes, dtype, device, exact)
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
        tokens, metrics = _show(session, _chat_ids(session.target, history), max_new_tokens)
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
    max_nodes: NodesOption = 16,
    model: ModelOption = "smollm2-135m-instruct",
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
    if json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"json: expected an existing folder, got {json_file.parent}")
    questions = read_questions(prompts, limit=limit, per_category=per_category)
    target = _session(model, "none", max_nodes, dtype, device, exact).target
    library = any(name.startswith(TRANSFORMERS) for name in names)
    stock = _stock_model(model, dtype, device) if library else None
    runner = Runner(target, stock, max_nodes=max_nodes, eos=_ends(target))

    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=messages) as bar:
        total = sum(len(q.turns[:turns]) for q in questions) * len({"plain", *names})
        task = bar.add_task("runs", total=total, now="")

        def progress(question: Question, method: str) -> None:
            now = f"{question.category} {question.question_id}: {method}"
            bar.update(task, advance=1, now=now)

        result = run_benchmark(
            runner,
            questions,
            names,
            max_new_tokens=max_new_tokens,
            turns=turns,
            load_model64=lambda: _stock_model(model, dtype, device).double(),
            progress=progress,
        )
    if json_file is not None:
        _write_whole(json_file, json.dumps(result.as_json(), indent=1))
    for table in benchmark_tables(result):
        console.print(table)
    if not result.lossless:
        messages.print("specdec: answers differ beyond the tie rule", style="red")
        raise typer.Exit(1)


@app.command()
def info(model: ModelOption = "smollm2-135m-instruct") -> None:
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
        try:
            target = load_target(model, dtype=getattr(torch, precision), exact=True)
            table.add_row(f"exact {precision}", "yes")
        except ValueError as error:
            if not str(error).startswith("exact"):
                raise
            table.add_row(f"exact {precision}", "no")
            continue
    target = load_target(model)
    parameters = sum(p.numel() for p in target.model.parameters())
    table.add_row("model", f"{model}: {type(target.model).__name__}, {parameters / 1e6:.0f} M")
    table.add_row("positions", str(target.position_limit))
    console.print(table)


def _session(
    model: str, drafter: str, max_nodes: int, dtype: DType, device: str, exact: bool
) -> Session:

    check_max_nodes(max_nodes)
    loaded = load_drafter(drafter)  # names are checked before seconds are spent on the model
    target = load_target(model, dtype=getattr(torch, dtype), device=_device(device), exact=exact)
    return Session(target, loaded, max_nodes=max_nodes)


def _device(name: str) -> Any:

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected one of this machine's, got {name!r} ({reason})"
        ) from error
    return device


def _stock_model(model: str, dtype: DType, device: str) -> Any:
    """Load the model again, as the library gives it and without anything prepared."""
    return load_model(model, dtype=getattr(torch, dtype), device=device)[0]


def _chat_ids(target: Target, history: list[dict[str, str]]) -> list[int]:
    if target.tokenizer.chat_template is None:
        raise ValueError("model: expected a tokenizer with a chat template (or --raw), got none")
    ids: list[int] = target.tokenizer.apply_chat_template(history, add_generation_prompt=True)[
        "input_ids"
    ]
    return ids


def _ends(target: Target) -> list[int]:
    eos = target.model.generation_config.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or [])


def _show(session: Session, ids: list[int], max_new_tokens: int) -> tuple[list[int], Metrics]:
    """Stream an answer to the terminal."""
    metrics = Metrics()
    tokens: list[int] = []
    text = _Detokenizer(session.target.tokenizer)
    rounds = session.stream(
        [ids], max_new_tokens=max_new_tokens, eos_token_ids=_ends(session.target), metrics=metrics
    )
    for (emitted,) in rounds:
        tokens += emitted.tokens
        for place, token in enumerate(emitted.tokens):
            style = DRAFTED if place < emitted.drafted else OWN
            console.print(text.add(token), style=style, end="", markup=False)
        console.file.flush()
    console.print()
    return tokens, metrics


class _Detokenizer:
    """Text of tokens as they come; an incomplete character waits for the rest of its bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pending: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        self.pending.append(token)
        text = self.tokenizer.decode(self.pending, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new: str = text[len(self.shown) :]
        self.shown = text
        if new.endswith("\n"):  # a line end settles everything before it
            self.pending, self.shown = [], ""
        return new


def _legend() -> None:
    console.print(
        f"[{DRAFTED}]green[/]: drafted and accepted   default: the target's own", style="dim"
    )


def _compare(
    session: Session,
    model: str,
    ids: list[int],
    tokens: list[int],
    metrics: Metrics,
    max_new_tokens: int,
    drafter: str,
) -> None:
    """Time the plain loop and the library on the same prompt and check that they write the same."""
    target = session.target
    precision = DType(str(target.dtype).removeprefix("torch."))
    stock = _stock_model(model, precision, str(target.device))
    runner = Runner(target, stock, max_nodes=session.max_nodes, eos=_ends(target))
    table = Table(title="same prompt, same process")
    for column in ("method", "tokens/s", "seconds", "passes", "text"):
        table.add_column(column, justify="left" if column in ("method", "text") else "right")

    def row(method: str, count: int, seconds: float, passes: int, text: str) -> None:
        table.add_row(method, f"{count / seconds:.1f}", f"{seconds:.2f}", str(passes), text)

    row(drafter, len(tokens), sum(metrics.seconds.values()), metrics.rounds + 1, "as shown above")
    for method in (PLAIN, TRANSFORMERS):
        with messages.status(f"{method} …"):
            written = runner.write(method, ids, max_new_tokens)
        if written.tokens == tokens:
            verdict = "identical"
        else:
            replayed = replay(
                _stock_model(model, precision, str(target.device)).double(),
                ids,
                written.tokens,
                target.dtype,
            )
            verdict = f"differs, margin {replayed.margin:.1e}"
        seconds = written.prefill_seconds + written.decode_seconds
        row(method, len(written.tokens), seconds, len(written.tokens), verdict)
    console.print(table)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp") as file:
        file.write(text)
    Path(file.name).replace(path)


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
