"""What a run knows so far, in a file that is whole at any moment."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from bench.gpu.group import Group
from bench.gpu.run import Row
from bench.report.gpu.page import RECORD


class Record:
    """What is known so far, in one file that is whole at any moment."""

    def __init__(self, folder: Path | None, head: Row) -> None:
        self.file = folder and folder / RECORD
        self.head, self.rows, self.planned = head, [], {}
        self.earlier: list[Row] = []
        self.trouble: str | None = None

    def take(self, part: str, groups: list[Group]) -> bool:
        """Take a part's rows as they are now; tell whether there are new ones."""
        events = [(group, row) for group in groups for row in group.rows]
        own = [
            {"part": part, **({"beside": group.module} if group.beside else {}), **row}
            for group, row in events
            if "event" not in row
        ]
        self.planned[part] = [
            case
            for group, row in events
            if row.get("event") == "planned" and not group.beside
            for case in row["cases"]
        ]
        rows = self.earlier + own
        new, self.rows = len(rows) != len(self.rows), rows
        return new

    def close(self) -> None:
        """Let the next part begin."""
        self.earlier = self.rows

    @property
    def content(self) -> Row:
        planned = {part: list(dict.fromkeys(cases)) for part, cases in self.planned.items()}
        return {**self.head, "planned": planned, "rows": self.rows}

    def write(self) -> None:
        """Write the file; where it cannot be, the run goes on and its tables are printed all the same."""
        if self.file is None:
            return
        head = json.dumps({k: v for k, v in self.content.items() if k != "rows"})[:-1]
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        try:
            write_whole(self.file, f'{head}, "rows": [\n{rows}\n]}}\n'.encode())
            trouble = None
        except OSError as error:
            trouble = f"{self.file}: not written: {error}"
        if trouble and trouble != self.trouble:
            print(trouble, flush=True)
        self.trouble = trouble


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is never seen half-written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    try:
        new.write_bytes(content)
        new.replace(file)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
