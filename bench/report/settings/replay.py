"""The tables and the picture of what bench/replay/run.py compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from bench.report.pages import number, table

PICTURE = "![rate over nodes per round, four machines: fixed settings and the computed one](../pictures/settings.png)"
GREY, BLUE, RED = "#8c959f", "#0969da", "#cf222e"
DISTURBED = {
    "guarded": "nothing wrong, with the guard",
    "noise": "times 20 % wrong, each by itself: mean",
    "noise_worst": "the worst of 30 such tables",
    "slope_lower": "slope 20 % lower",
    "slope_higher": "slope 20 % higher",
    "rate_halved": "rate halved",
    "rate_doubled": "rate doubled",
}


def replay_tables(result: dict[str, Any]) -> dict[str, str]:
    """Write what stands between the marks of the page."""
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
    return table(["machine", "level, ms", "knee", "ms/node", *of_rows, "beams"], rows)


def fitted_tables(result: dict[str, Any]) -> str:
    names = {"all": result["fitted"]["all"]}
    names |= dict(zip(("one half", "the other"), result["fitted"]["halves"], strict=True))
    fitted = table(
        ["fitted on", "rate", "r of the search", "r of lookup", "g"],
        [[name, *(f"{value:.2f}" for value in found.values())] for name, found in names.items()],
    )
    shares = result["tables"][0]["right_by_rank"]
    ranks = table(
        ["node by rank", *shares], [["right, % of rounds", *(f"{100 * s:.1f}" for s in shares.values())]]
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
    header = ["x plain, one row", "constants", "best fixed setting", "computed", "either way", "of constants", "oracle"]  # fmt: skip
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
    header = ["x plain", "session's rule", "best fixed pair", "computed", "of the rule", "of the pair"]  # fmt: skip
    return table(header, rows)


def disturbed_table(result: dict[str, Any]) -> str:
    tables = result["tables"]
    rows = [
        [said, *(f"{one['disturbed'][name]:.3f}" for one in tables)]
        for name, said in DISTURBED.items()
    ]
    return table(["share of the undisturbed rate", *(one["table"] for one in tables)], rows)


def gates_text(result: dict[str, Any]) -> str:
    missed = [gate for gate in result["gates"] if not gate["met"]]
    said = [
        f"{g['table']}, {g['of']}: {g['found']:.3f} where {g['least']} was the aim" for g in missed
    ]
    met = len(result["gates"]) - len(missed)
    return f"{met} of {len(result['gates'])} aims are met. Missed: {'; '.join(said) or 'none'}."


def texts_line(result: dict[str, Any]) -> str:
    halves = [", ".join(map(str, half)) for half in result["halves"]]
    return (
        f"Questions of Spec-Bench: one half {halves[0]}; the other {halves[1]}. Together {result['positions']:,} positions. "
        f"Recorded in float32 on {result['device']}."
    )


def draw_settings(result: dict[str, Any], path: Path) -> None:
    """Rate over nodes per round; a panel per machine."""
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
        axis.set_ylabel("x plain")
    panels[0, 0].legend(frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
