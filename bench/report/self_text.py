"""How fast self-text is written, and what it is worth: tables of docs/use/training.md."""

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
            table(["batch", "answer tokens per second and thread", "x padded"], rows),
            f"Answers of at most {result['answer_tokens']} tokens to {result['turns']} user turns. `padded`: the library's "
            "`generate` on batches of 64, with the same prepacked layers. `continuous`: ours, by rows; `refilled` without "
            "the beginning and the end of a run, which count less the longer it is.",
            f"With a second token per row a pass takes at least {second['64']:.2f} times as long for 64 rows and "
            f"{second['128']:.2f} times for 128, if reading keys and values again costs nothing.",
            f"{result['dtype']}; {result['device']}, {result['threads']} thread; {versions}.",
        ]
    )


def value_table(result: dict[str, Any]) -> str:
    """Tokens per round after an epoch on equally much of each text."""
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
