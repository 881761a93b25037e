"""Speed of self-text generation and its value for training: tables of docs/use/training.md."""

from __future__ import annotations

from typing import Any

from bench.report.pages import table


def writing_table(result: dict[str, Any]) -> str:
    """Tokens per second and thread, and what a pass of several tokens per row costs."""
    rates = result["tokens_per_second"]
    rows = [[name, f"{rate:.0f}", f"{rate / rates['padded']:.2f}"] for name, rate in rates.items()]
    second = result["pass_with_a_second_token"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n\n".join(
        [
            table(
                ["batch", "answer tokens per second and thread", "speed-up over padded batches"],
                rows,
            ),
            f"Answers of at most {result['answer_tokens']} tokens to {result['turns']} user turns. `padded`: transformers' "
            "`generate`, batches of 64, same prepacked layers. `continuous`: specdec, by rows; `refilled` excludes the "
            "start and the end of a run.",
            f"A second token per row makes a pass at least {second['64']:.2f} (64 rows) or {second['128']:.2f} (128 rows) "
            "times as long, if reading keys and values again is free.",
            f"{result['dtype']}; {result['device']}, {result['threads']} thread; {versions}.",
        ]
    )


def value_table(result: dict[str, Any]) -> str:
    """Tokens per round after one epoch on the same amount of each text."""
    names = ["conversations", "tokens", "answer_tokens"]
    rows = [
        [
            name,
            *(f"{text[n]:,}" for n in names),
            f"{text['tokens_per_round']:.3f}",
            f"{text['ctar_1']:.3f}",
        ]
        for name, text in result["texts"].items()
    ]
    head = ["text", "conversations", "tokens", "answer tokens", "tokens/round", "CTAR(1)"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{table(head, rows)}\n\nReDrafter, one epoch, 24 unseen questions; {result['dtype']}; {result['device']}, "
        f"{result['threads']} threads; {versions}."
    )
