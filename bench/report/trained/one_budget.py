"""Tables and a picture of drafters that were trained on one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from bench.report.pages import machine_line, number, table

PICTURE = "![tokens per round over nodes per round](../pictures/trained.png)"
NAMES = {
    "redrafter": "ReDrafter",
    "medusa": "Medusa-1",
    "kangaroo": "Kangaroo",
    "eagle3": "EAGLE-3",
    "kangaroo-own-head": "with its own head",
    "kangaroo-layer": "full decoder layer",
    "kangaroo-mlp": "MLP only",
    "kangaroo-none": "no adapter",
}


def budget_tables(result: dict[str, Any], *, attention: str = "Kangaroo") -> str:
    """Tell what each drafter cost and what it gives, at equal nodes and as it drafts by itself.

    Args:
        result: a file of `bench/trained/judge.py`.
        attention: what Kangaroo's own adapter is called.
    """
    names = NAMES | {"kangaroo": attention}
    methods = {name: result["methods"][name] for name in names if name in result["methods"]}
    text, machine = result["text"], result["machine"]
    sizes = sorted({int(n) for row in methods.values() for n in row.get("nodes", ())})
    widest = str(sizes[-1])
    cost = table(
        ["drafter", "parameters", "CPU minutes, one thread", "peak memory, GB", "epochs", "batch"],
        [
            [
                names[name],
                f"{row['training']['parameters'] / 1e6:.2f} M",
                f"{row['training']['seconds'] / 60:.0f}",
                f"{row['training']['peak_bytes'] / 1e9:.1f}",
                str(row["training"]["epochs"]),
                str(row["training"]["batch"]),
            ]
            for name, row in methods.items()
        ],
    )
    gains = table(
        ["tokens per round", *(f"{n} nodes" for n in sizes)],
        [
            [names[name], *(number(row["nodes"][str(n)]["tokens_per_round"]) for n in sizes)]
            for name, row in methods.items()
        ],
    )
    widths = range(1, len(next(iter(methods.values()))["nodes"][widest]["ctar"]) + 1)
    ctar = table(
        [f"CTAR at {widest} nodes", *(f"w = {w}" for w in widths)],
        [
            [names[name], *(number(share) for share in row["nodes"][widest]["ctar"])]
            for name, row in methods.items()
        ],
    )
    equal = sum(
        at["different_texts"] == 0 for row in methods.values() for at in row["nodes"].values()
    )
    runs = sum(len(row["nodes"]) for row in methods.values())
    lines = [
        f"Text: {text['conversations']:,} conversations, {text['answer_tokens']:,} answer tokens, "
        f"{text['tokens']:,} tokens. The target's pass over it took {text['seconds'] / 60:.0f} CPU minutes, which are not "
        "part of those below.",
        cost,
        gains,
        ctar,
        f"float32, {result['prompts']} questions, {result['max_new_tokens']} tokens each. All texts equal plain decoding's in "
        f"{equal} of {runs} runs. {machine_line(machine)}",
    ]
    if all("speed" in row for row in methods.values()):
        lines += [
            table(
                ["computed settings", "speed-up over plain", "95 % interval", "tokens per round", "nodes per round", "draft, ms"],
                [
                    [
                        names[name],
                        number(row["speed"]["ratio"]),
                        " to ".join(number(end) for end in row["speed"]["interval"]),
                        number(row["speed"]["tokens_per_round"]),
                        f"{row['speed']['nodes_per_round']:.1f}",
                        f"{row['speed']['draft_ms']:.1f}",
                    ]
                    for name, row in methods.items()
                ],
            ),
            f"Speed, float32: {machine_line(result['speed_machine'])}",
        ]  # fmt: skip
    return "\n\n".join(lines)


def draw_gains(result: dict[str, Any], path: Path) -> None:
    """Draw tokens per round over nodes per round, one line per drafter."""
    figure, axis = plt.subplots(figsize=(7, 3.8))
    for name, row in result["methods"].items():
        points = sorted(
            (at["nodes_per_round"], at["tokens_per_round"]) for at in row["nodes"].values()
        )
        axis.plot(*zip(*points, strict=True), marker="o", label=NAMES[name])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("nodes per round")
    axis.set_ylabel("tokens per round")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def causes_table(result: dict[str, Any]) -> str:
    """Compare EAGLE-3's trainings of `bench/trained/eagle3_causes.py`."""
    rows = [
        [
            name,
            str(row["passes"]),
            str(row["epochs"]),
            str(row["batch"]),
            f"{row['learning_rate']:g}",
            "the target's last layer" if row["layer"] else "random",
            f"{row['seconds'] / 60:.1f}",
            number(row["nodes"][str(result["nodes"])]["tokens_per_round"]),
        ]
        for name, row in result["causes"].items()
    ]
    header = ["changed", "passes", "epochs", "batch", "learning rate", "start", "CPU minutes"]
    return "\n\n".join(
        [
            table([*header, f"tokens per round, {result['nodes']} nodes"], rows),
            f"Text of {result['tokens']:,} tokens; float32, {result['prompts']} questions, {result['max_new_tokens']} tokens "
            f"each. {machine_line(result['machine'])}",
        ]
    )
