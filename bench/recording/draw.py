"""Draw a recording as an animated picture of a terminal: plain decoding above, drafting below, on one time scale.

    python -m bench.recording.draw bench/results/recording.json docs/pictures/terminal.svg

It plays at the speed of the recording, again and again, by CSS alone. Without animation, and where the reader asks for less
motion, the last frame is shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

COLUMNS, ADVANCE, LINE, MARGIN = 80, 8.4, 20, 20
WIDTH = round(COLUMNS * ADVANCE + 2 * MARGIN)
HOLD, FIRST = (
    4.0,
    1.5,
)  # seconds that the last frame stays; it is also what is shown first, so that a still is whole
TITLES = {"plain": "plain decoding", "drafted": "specdec, drafting"}
STYLE = """
svg{--page:#f6f8fa;--edge:#d0d7de;--text:#1f2328;--quiet:#57606a;--drafted:#116329;--behind:#aceebb;--bar:#8c959f;--fast:#1a7f37}
@media(prefers-color-scheme:dark){svg{--page:#0d1117;--edge:#30363d;--text:#e6edf3;--quiet:#9198a1;--drafted:#7ee787;--behind:#12361f;--bar:#656c76;--fast:#3fb950}}
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--text);white-space:pre}
.q{fill:var(--quiet)}.b{font-weight:600}.d text{fill:var(--drafted);font-weight:600}.d rect{fill:var(--behind)}
.e,.m{animation:PERIODs linear -BEGINs infinite}.e{animation-timing-function:step-end}.m{transform-box:fill-box;transform-origin:0 0}
@media(prefers-reduced-motion:reduce){.e,.m{animation:none!important}}
"""

Piece = tuple[int, int, str]


def placed(tokens: list[str]) -> tuple[list[list[Piece]], int]:
    """Break the text into lines; say for each token which pieces (line, column, text) it has, and how many lines there are."""
    text = "".join(tokens)
    places: list[tuple[int, int]] = []
    line = column = 0
    for at, letter in enumerate(text):
        if letter == "\n":
            places.append((line, column))
            line, column = line + 1, 0
            continue
        starts_word = letter != " " and (at == 0 or text[at - 1] in " \n")
        word = text[at:].split(maxsplit=1)[0] if starts_word else ""
        if letter != " " and column and (column + len(word) > COLUMNS or column == COLUMNS):
            line, column = line + 1, 0
        places.append((line, column))
        column = min(column + 1, COLUMNS)
    pieces, at = [], 0
    for token in tokens:
        own: list[Piece] = []
        for letter, (line, column) in zip(token, places[at : at + len(token)], strict=True):
            if letter == "\n" or column == COLUMNS:
                continue
            if own and own[-1][0] == line and own[-1][1] + len(own[-1][2]) == column:
                own[-1] = (*own[-1][:2], own[-1][2] + letter)
            else:
                own.append((line, column, letter))
        pieces.append(own)
        at += len(token)
    return pieces, 1 + max((line for line, _ in places), default=0)


def text_of(column: int, y: float, text: str, classes: str = "") -> str:
    """Text whose width does not depend on the reader's font."""
    lead = len(text) - len(text.lstrip())
    shown = text.strip()
    if not shown:
        return ""
    mark = f' class="{classes}"' if classes else ""
    x, wide = MARGIN + (column + lead) * ADVANCE, len(shown) * ADVANCE
    return f'<text x="{x:.1f}" y="{y:g}" textLength="{wide:.1f}"{mark}>{escape(shown)}</text>'


class Movie:
    """What appears when: one group of elements and one rule per moment."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.rules: list[str] = []

    def share(self, seconds: float) -> str:
        return f"{100 * seconds / self.period:.2f}%"

    def appear(self, seconds: float, content: str) -> str:
        if not content:
            return ""
        name = f"k{len(self.rules)}"
        self.rules.append(f"@keyframes {name}{{0%{{opacity:0}}{self.share(seconds)}{{opacity:1}}}}")
        return f'<g class="e" style="animation-name:{name}">{content}</g>'

    def grow(self, seconds: float, content: str) -> str:
        name = f"k{len(self.rules)}"
        self.rules.append(
            f"@keyframes {name}{{0%{{transform:scaleX(0)}}{self.share(seconds)},to{{transform:none}}}}"
        )
        return content.replace("<rect ", f'<rect class="m" style="animation-name:{name}" ', 1)


def pane(way: str, run: dict[str, Any], movie: Movie, longest: float, top: float) -> tuple[str, float]:  # fmt: skip
    """Draw one way of writing from `top` on; return it and where it ends."""
    tokens = [token for each in run["rounds"] for token, _ in each["tokens"]]
    pieces, lines = placed(tokens)
    done = (
        f"{run['tokens']} tokens in {run['seconds']:.2f} s: {run['tokens_per_second']:.1f} tokens/s"
    )
    parts = [text_of(0, top, TITLES[way], "b")]
    parts.append(movie.appear(run["seconds"], text_of(COLUMNS - len(done), top, done, "b")))
    whole = COLUMNS * ADVANCE
    wide, bar = whole * run["seconds"] / longest, "var(--bar)" if way == "plain" else "var(--fast)"
    parts.append(f'<rect x="{MARGIN}" y="{top + 8:g}" width="{whole:.1f}" height="4" rx="2" fill="var(--edge)"/>')  # fmt: skip
    parts.append(movie.grow(run["seconds"], f'<rect x="{MARGIN}" y="{top + 8:g}" width="{wide:.1f}" height="4" rx="2" fill="{bar}"/>'))  # fmt: skip
    first, number = top + 34, 0
    for each in run["rounds"]:
        own, drafted = [], []
        for _, is_drafted in each["tokens"]:
            for line, column, text in pieces[number]:
                y = first + line * LINE
                if is_drafted:
                    x, wide = MARGIN + column * ADVANCE, len(text) * ADVANCE
                    drafted.append(f'<rect x="{x:.1f}" y="{y - 14:g}" width="{wide:.1f}" height="18"/>')  # fmt: skip
                (drafted if is_drafted else own).append(text_of(column, y, text))
            number += 1
        both = "".join(own) + (f'<g class="d">{"".join(drafted)}</g>' if drafted else "")
        parts.append(movie.appear(each["at"], both))
    return "\n".join(part for part in parts if part), first + lines * LINE


def draw_recording(recording: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    runs, machine = recording["runs"], recording["machine"]
    longest = max(run["seconds"] for run in runs.values())
    movie = Movie(longest + HOLD)
    prompt, prompt_lines = placed([f"> {recording['prompt']}"])
    body = [text_of(column, 32 + line * LINE, text, "b") for line, column, text in prompt[0]]
    top = 32 + prompt_lines * LINE + 16
    for way, run in runs.items():
        drawn, end = pane(way, run, movie, longest, top)
        body.append(drawn)
        top = end + 16
    threads = machine["threads"]
    device = f"{machine['device']}, {threads} thread{'s' * (threads != 1)}"
    legend, same = (
        "accepted draft tokens",
        "the same tokens" if recording["same_text"] else "different texts",
    )
    body.append(f'<g class="d"><rect x="{MARGIN}" y="{top - 14:g}" width="{len(legend) * ADVANCE:.1f}" height="18"/>{text_of(0, top, legend)}</g>')  # fmt: skip
    body.append(text_of(len(legend) + 2, top, f"real speed; both ways write {same}", "q"))
    body.append(text_of(0, top + LINE, f"{recording['model']}, {machine['dtype']}; {device}", "q"))
    height = round(top + LINE + 18)
    style = STYLE.replace("PERIOD", f"{movie.period:.2f}").replace(
        "BEGIN", f"{movie.period - FIRST:.2f}"
    )
    style += "\n".join(movie.rules)
    said = "; ".join(f"{TITLES[way]}: {run['tokens_per_second']:.1f} tokens per second" for way, run in runs.items())  # fmt: skip
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{escape(said)}">\n'
        f"<title>{escape(said)}</title>\n<style>{style}\n</style>\n"
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="var(--page)" stroke="var(--edge)"/>\n'
        + "\n".join(body)
        + "\n</svg>\n",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.recording.draw",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("recording", type=Path)
    parser.add_argument("picture", type=Path)
    asked = parser.parse_args()
    draw_recording(json.loads(asked.recording.read_text(encoding="utf-8")), asked.picture)


if __name__ == "__main__":
    main()
