"""Tables of the second model: its drafters' trainings and the comparison on questions."""

from __future__ import annotations

from typing import Any

from bench.report.pages import machine_line, number, table
from bench.report.training import sizes_table, training_table


def second_model_page(result: dict[str, Any]) -> str:
    """Make the page of a `bench/decoding/second_model.py` result; with times if it has them."""
    parts = [sizes_table(result["training"]), training_table(result["training"])]
    if all("seconds_of_last_run" in report for report in result["training"].values()):
        parts.append(times_line(result["training"]))
    parts += [vocabulary_line(result), comparison_table(result["methods"])]
    machine = result["machine"]
    return "\n\n".join([*parts, f"{machine['dtype']}; {machine_line(machine)}"])


def times_line(training: dict[str, dict[str, Any]]) -> str:
    """Return training times; both trainings read the target's hidden states from files."""
    took = [
        f"{name} {report['seconds_of_last_run'] / 60:.1f} minutes on {report['threads']} threads"
        for name, report in training.items()
    ]
    return f"Trained in: {', '.join(took)}."


def vocabulary_line(result: dict[str, Any]) -> str:
    vocabulary = result["vocabulary"]
    megabytes = {
        which: vocabulary[which] * vocabulary["bytes_per_token"] / 1e6 for which in ("draft", "all")
    }
    tokens = result["methods"]["plain"]["new_tokens"]
    return (
        f"The draft vocabulary has {vocabulary['draft']:,} of {vocabulary['all']:,} tokens: a draft step reads "
        f"{megabytes['draft']:.0f} MB of the head instead of {megabytes['all']:.0f} MB. It covers "
        f"{vocabulary['share_of_text']:.1%} of the {tokens:,} tokens in the answers."
    )


def comparison_table(methods: dict[str, dict[str, Any]]) -> str:
    header = ["method", "tokens/round", "CTAR(1), (2), (3)", "nodes/round", "identical texts", "ties", "errors"]  # fmt: skip
    timed = all("ms_per_round" in row for row in methods.values())
    if timed:
        header += [
            "draft, ms",
            "verify, ms",
            "tokens/s",
            "speed-up over plain",
            "speed-up over transformers",
        ]
    rows = []
    for method, row in methods.items():
        ctar = ", ".join(f"{share:.2f}" for share in row["ctar"][:3]) if row["ctar"] else "-"
        cells = [method, number(row["tokens_per_round"]), ctar, number(row["nodes_per_round"])]
        cells += [f"{row['identical']}/{row['answers']}", str(row["ties"]), str(row["errors"])]
        if timed:
            stages = row["ms_per_round"]
            cells += [number(stages.get(stage)) for stage in ("draft", "verify")]
            cells.append(f"{row['tokens_per_second']:.1f}")
            cells += [number(row[f"speedup_vs_{base}"]) for base in ("plain", "transformers")]
        rows.append(cells)
    return table(header, rows)
