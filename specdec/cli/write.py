"""The commands that write text: generate and chat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ..drafters import AUTO, check_drafter_name
from ..host.json_files import is_text
from ..sources.embedded import DEFAULT_MODEL
from ..sources.tokenizing import chat_ids, check_chat_template, text_ids
from .options import (
    CostsOption,
    DeviceOption,
    DrafterOption,
    DType,
    DTypeOption,
    ExactOption,
    ModelOption,
    NewTokensOption,
    NodesOption,
    RevisionOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    TrustOption,
    check_sampling,
)
from .terminal import console

if TYPE_CHECKING:
    from ..metrics import Metrics
    from ..model.target import Target
    from ..pickers import Picker
    from ..row_statistics import Statistics
    from ..session import Session

DRAFTED, OWN = "green", "default"
END = "/exit"
DEMO_PROMPT = (
    "Rewrite this paragraph with every sentence on its own line, and change nothing else: "
    "The heart pumps blood through the body. The blood carries oxygen from the lungs to the muscles. "
    "The muscles use the oxygen to release energy. The blood then carries carbon dioxide from the "
    "muscles back to the lungs, and the lungs breathe it out."
)


def generate(
    prompt: Annotated[
        str, typer.Argument(help="The prompt; - reads standard input.")
    ] = DEMO_PROMPT,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    drafter: DrafterOption = AUTO,
    max_new_tokens: NewTokensOption = 128,
    max_nodes: NodesOption = None,
    costs: CostsOption = None,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt without a chat template.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also run plain decoding and transformers, and compare."),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show costs, and each drafter's drafted and accepted tokens."
        ),
    ] = False,
) -> None:
    """Answer a prompt, with accepted draft tokens in green, then show speed and acceptance."""
    text = _said(_read(sys.stdin.read) if prompt == "-" else prompt)
    if not text.strip():
        raise ValueError("prompt: expected some text, got none")
    if compare and temperature:
        raise ValueError(
            f"compare: expected temperature 0, as it compares greedy text, got {temperature}"
        )
    check_sampling(temperature, top_p, seed)
    check_drafter_name(drafter)

    from ..costs.table import read_costs
    from ..drafters import chosen
    from ..evaluate.answers import Prompt
    from ..evaluate.explain import explanation
    from ..evaluate.method_names import PLAIN, TRANSFORMERS
    from ..evaluate.questions import Question
    from ..evaluate.report import metrics_table
    from ..row_statistics import Statistics
    from ..session import Session
    from .compare import compare_methods
    from .loading import ModelChoice

    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=dtype, device=device, threads=threads
    )
    table = None if costs is None else read_costs(costs)
    target = choice.target(exact=exact)
    session = Session(target, drafter, max_nodes=max_nodes, costs=table)
    picker = _picker(target, temperature, top_p, seed)
    drafter = chosen(drafter, target)
    if raw:
        ids = text_ids(target.tokenizer, text)
    else:
        check_chat_template(target.tokenizer)
        ids = chat_ids(target.tokenizer, [{"role": "user", "content": text}])
        console.print(text, style="bold", markup=False, emoji=False)
    statistics = Statistics()
    _, metrics = _show(session, ids, max_new_tokens, picker, statistics)
    _legend()

    console.print(metrics_table(metrics, f"{drafter}, {dtype}"))
    if explain:
        for part in explanation(session, statistics):
            console.print(part)
    if compare:
        asked = Prompt(Question(0, "prompt", [text]), 0, ids, lambda tokens: None)
        methods = [drafter, PLAIN, TRANSFORMERS]
        compare_methods(target, choice, [asked], methods, max_new_tokens, max_nodes, costs=table)


def chat(
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    drafter: DrafterOption = AUTO,
    max_new_tokens: NewTokensOption = 512,
    max_nodes: NodesOption = None,
    costs: CostsOption = None,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
) -> None:
    """Chat with the model; earlier turns stay in the KV cache. End with /exit or the end of input."""
    check_sampling(temperature, top_p, seed)
    check_drafter_name(drafter)

    from ..costs.table import read_costs
    from ..session import Session
    from .loading import ModelChoice

    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=dtype, device=device, threads=threads
    )
    table = None if costs is None else read_costs(costs)
    target = choice.target(exact=exact)
    check_chat_template(target.tokenizer)
    session = Session(target, drafter, max_nodes=max_nodes, costs=table)
    picker = _picker(target, temperature, top_p, seed)
    history: list[dict[str, str]] = []
    _legend()
    while (line := _ask()) is not None:
        history.append({"role": "user", "content": line})
        console.print("[bold]model: [/bold]", end="")
        tokens, metrics = _show(
            session, chat_ids(target.tokenizer, history), max_new_tokens, picker
        )
        answer = target.tokenizer.decode(tokens, skip_special_tokens=True)
        history.append({"role": "assistant", "content": answer})
        console.print(
            f"{metrics.tokens_per_second:.1f} tokens/s, {metrics.tokens_per_round:.2f} per round",
            style="dim",
        )


def _ask() -> str | None:
    """Return the next line that is not empty; None at the end."""
    while True:
        try:
            line = _said(_read(lambda: console.input("[bold]you: [/bold]"))).strip()
        except EOFError:
            console.print()
            return None
        if not sys.stdin.isatty():  # a terminal echoes input itself
            console.print(line, markup=False, emoji=False)
        if line:
            return None if line == END else line


def _read(read: Callable[[], str]) -> str:
    """Read text, and drop a byte-order mark."""
    try:
        return read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt: expected text in UTF-8, got other bytes ({error})") from error


def _said(text: str) -> str:
    if not is_text(text):
        raise ValueError(f"prompt: expected text in UTF-8, got other bytes in {text[:60]!a}")
    return text


def _picker(target: Target, temperature: float, top_p: float, seed: int | None) -> Picker:
    from ..pickers import Greedy, sampler
    from ..sampling import new_sampling

    if temperature == 0:
        return Greedy()
    settings = {"temperature": temperature, "top_p": top_p}
    return sampler(new_sampling(seed, [0], target.device, **settings), target)


def _show(
    session: Session,
    ids: list[int],
    max_new_tokens: int,
    picker: Picker,
    statistics: Statistics | None = None,
) -> tuple[list[int], Metrics]:
    """Stream an answer to the terminal."""
    from ..huggingface.streaming import Detokenizer
    from ..metrics import Metrics
    from ..session import end_tokens

    metrics = Metrics()
    tokens: list[int] = []
    text = Detokenizer(session.target.tokenizer)
    rounds = session.stream(
        [ids],
        max_new_tokens=max_new_tokens,
        eos_token_ids=end_tokens(session.target.model.generation_config),
        picker=picker,
        metrics=metrics,
        statistics=statistics,
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
        f"[{DRAFTED}]green[/]: accepted draft tokens   default: the target's tokens", style="dim"
    )
