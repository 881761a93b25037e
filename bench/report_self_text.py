"""How fast self-text is written, and what it is worth: tables of docs/training.md."""

from __future__ import annotations

from typing import Any

from pages import table


def writing_table(result: dict[str, Any]) -> str:
    """Tokens per second and thread, and what a pass of several tokens per row costs."""
    rates = result["tokens_per_second"]
    rows = [[name, f"{rate:.0f}", f"{rate / rates['padded']:.2f}"] for name, rate in rates.items()]
    passes = result["seconds_of_a_pass_of_64_rows"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n\n".join(
        [
            table(["batch", "answer tokens per second and thread", "x padded"], rows),
            f"The same {result['turns']} user turns, answers of at most {result['answer_tokens']} tokens. `padded`: the "
            "library's `generate` on batches of 64, with the same packed layers. `continuous`: ours, by rows.",
            f"A pass of 64 rows takes {passes['2'] / passes['1']:.2f} times as long with two tokens per row as with one, "
            f"{passes['4'] / passes['1']:.2f} times with four.",
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
    return table(head, rows) + f"\n\nReDrafter, one epoch, 24 unseen questions; {result['device']}."
