"""Tables and picture of bench/replay/run.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from bench.report.pages import number, table

PICTURE = "![speed-up over nodes per round on four machines: fixed and computed settings](../pictures/settings.png)"
GREY, BLUE, RED = "#8c959f", "#0969da", "#cf222e"
DISTURBED = {
    "guarded": "no error, with the guard",
    "noise": "each time off by 20 %: mean",
    "noise_worst": "each time off by 20 %: worst of 30",
    "slope_lower": "slope 20 % lower",
    "slope_higher": "slope 20 % higher",
    "rate_halved": "rate halved",
    "rate_doubled": "rate doubled",
}


def replay_tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the content of each mark of the page."""
    return {
        "replay-prices": prices_table(result),
        "replay-fitted": fitted_tables(result),
        "replay-single": f"{single_table(result)}\n\n{PICTURE}",
        "replay-batches": batches_table(result),
        "replay-disturbed": disturbed_table(result),
        "replay-gates": gates_text(result),
        "replay-texts": texts_line(result),
    }


def prices_table(result: dict[str, Any]) -> str:
    rows = []
    for one in result["tables"]:
        line, prices = one["line"], one["prices"]
        cells = [f"{p['nodes']}, {p['node']:.4f}" for p in prices.values()]
        shape = [f"{line['level']:.4g}", f"{line['knee']:.1f}", f"{line['slope']:.4f}"]
        rows.append([one["table"], *shape, *cells, str(prices["1"]["width"])])
    of_rows = [f"{rows} row{'s' * (rows != '1')}: nodes, price" for rows in prices]
    return table(["machine", "level, ms", "knee, nodes", "slope, ms/node", *of_rows, "beams"], rows)


def fitted_tables(result: dict[str, Any]) -> str:
    names = {"all": result["fitted"]["all"]}
    names |= dict(zip(("half 1", "half 2"), result["fitted"]["halves"], strict=True))
    fitted = table(
        ["fitted on", "rate", "r, beam search", "r, lookup", "g"],
        [[name, *(f"{value:.2f}" for value in found.values())] for name, found in names.items()],
    )
    shares = result["tables"][0]["right_by_rank"]
    ranks = table(
        ["node by rank", *shares], [["correct, % of rounds", *(f"{100 * s:.1f}" for s in shares.values())]]
    )  # fmt: skip
    gains = ", ".join(f"{one['step_gain']:.2f} ({one['table']})" for one in result["tables"])
    return f"{fitted}\n\n{ranks}\n\nMeasured directly, g is {gains}."


def single_table(result: dict[str, Any]) -> str:
    rows = []
    for one in result["tables"]:
        single = one["single"]
        both = single["both"]
        ways = ", ".join(number(rate) for rate in single["each"]["computed"])
        oracle = sum(single["oracle"]) / len(single["oracle"])
        rates = [number(both[name]) for name in ("today", "fixed", "computed")]
        of_today = f"{both['computed'] / both['today']:.3f}"
        rows.append([one["table"], *rates, ways, of_today, number(oracle)])
    header = ["speed-up over plain, one row", "constants", "best fixed setting", "computed", "computed, each half", "computed / constants", "oracle"]  # fmt: skip
    return table(header, rows)


def batches_table(result: dict[str, Any]) -> str:
    rows = []
    for one in result["tables"]:
        for batch in one["batches"]:
            both = batch["both"]
            kind = f"{one['table']}: {batch['rows']} rows{', refilled' * batch['refill']}"
            rates = [number(both[name]) for name in ("today", "fixed", "computed")]
            shares = [f"{both['computed'] / both[name]:.3f}" for name in ("today", "fixed")]
            rows.append([kind, *rates, *shares])
    header = ["speed-up over plain", "session's rule", "best fixed pair", "computed", "computed / rule", "computed / pair"]  # fmt: skip
    return table(header, rows)


def disturbed_table(result: dict[str, Any]) -> str:
    tables = result["tables"]
    rows = [
        [said, *(f"{one['disturbed'][name]:.3f}" for one in tables)]
        for name, said in DISTURBED.items()
    ]
    return table(["share of the speed-up without errors", *(one["table"] for one in tables)], rows)


def gates_text(result: dict[str, Any]) -> str:
    missed = [gate for gate in result["gates"] if not gate["met"]]
    met = f"{len(result['gates']) - len(missed)} of {len(result['gates'])} aims are met."
    rows = [
        [f"{g['table']}, {g['of']}".replace(", of the", ", relative to the"), f"{g['found']:.3f}", str(g["least"])]
        for g in missed
    ]  # fmt: skip
    return f"{met}\n\n{table(['missed', 'found', 'aim'], rows)}" if missed else met


def texts_line(result: dict[str, Any]) -> str:
    names = ("half 1", "half 2")
    rows = [[name, ", ".join(map(str, half))] for name, half in zip(names, result["halves"], strict=True)]  # fmt: skip
    return (
        f"{table(['', 'questions of Spec-Bench'], rows)}\n\n{result['positions']:,} positions, recorded in float32 on "
        f"{result['device']}."
    )


def draw_settings(result: dict[str, Any], path: Path) -> None:
    """Draw the speed-up over nodes per round, a panel per machine."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.2))
    for axis, one in zip(panels.flat, result["tables"], strict=True):
        points = one["points"]
        nodes, rates = zip(*points["fixed"], strict=True)
        axis.scatter(nodes, rates, s=12, color=GREY, alpha=0.6, label="fixed settings")
        axis.scatter(*points["today"], s=70, marker="s", color=BLUE, label="constants")
        axis.scatter(*points["computed"], s=150, marker="*", color=RED, label="computed", zorder=3)
        axis.set_title(one["table"], loc="left")
        axis.set_xscale("log", base=2)
        ticks = (4, 8, 16, 32, 64)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.spines[["top", "right"]].set_visible(False)
    for axis in panels[1]:
        axis.set_xlabel("nodes per round")
    for axis in panels[:, 0]:
        axis.set_ylabel("speed-up over plain")
    panels[0, 0].legend(frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
