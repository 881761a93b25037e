"""Curves and tables of the shipped drafters' trainings, from the reports next to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from bench.report.pages import number, table

COLORS = {"redrafter": "#cf222e", "kangaroo": "#8250df"}
PICTURE = "![loss and tokens per round over the epochs](../pictures/training.png)"

Log = list[dict[str, Any]]


def losses(log: Log) -> Log:
    return [line for line in log if "loss" in line]


def validations(log: Log) -> Log:
    return [line for line in log if "validation" in line]


def loss_of_epoch(log: Log, epoch: int) -> float:
    """Average the logged losses of one epoch, each over as many steps as it stands for."""
    total, steps, before = 0.0, 0, 0
    for line in losses(log):
        if epoch - 1 < line["epoch"] <= epoch:
            total += line["loss"] * (line["step"] - before)
            steps += line["step"] - before
        before = line["step"]
    return total / steps


def draw_training(reports: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the loss and the tokens per round on held-out prompts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for name, report in reports.items():
        learned, validated = losses(report["log"]), validations(report["log"])
        left.plot(
            [line["epoch"] for line in learned],
            [line["loss"] for line in learned],
            color=COLORS.get(name),
            label=name,
            linewidth=1,
        )
        right.plot(
            [line["epoch"] for line in validated],
            [line["validation"]["tokens_per_round"] for line in validated],
            color=COLORS.get(name),
            label=name,
            marker="o",
        )
    left.set_title("training loss (two tasks, not comparable)", loc="left")
    right.set_title("tokens per round on held-out prompts", loc="left")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def training_table(reports: dict[str, dict[str, Any]]) -> str:
    header = ["drafter", "epoch", "loss", "tokens/round", "nodes/round", "CTAR(1)", "CTAR(2)", "CTAR(3)"]  # fmt: skip
    rows = []
    for name, report in reports.items():
        for line in validations(report["log"]):
            epoch, found = round(line["epoch"]), line["validation"]
            figures = [found.get(key) for key in ("tokens_per_round", "nodes_per_round", "ctar_1", "ctar_2", "ctar_3")]  # fmt: skip
            loss = loss_of_epoch(report["log"], epoch)
            rows.append([name, str(epoch), *map(number, (loss, *figures))])
    return table(header, rows)


def sizes_table(reports: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{report['parameters']:,}",
            f"{report['conversations']:,}",
            f"{report['tokens']:,}",
            f"{losses(report['log'])[-1]['step']:,}",
        ]
        for name, report in reports.items()
    ]
    header = ["drafter", "trained parameters", "conversations", "tokens with prompts", "steps"]
    return table(header, rows)
