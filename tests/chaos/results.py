"""What each case promises and what was seen, in out/chaos.json. docs/generate.py makes docs/reliability.md of it."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from tests.support.paths import ROOT

PATH = ROOT / "out" / "chaos.json"


@dataclass(slots=True)
class Row:
    """One case. seen: short name → figure, with the unit in the name (`longest_gap_s`); None was not measured.

    notes: what else was seen. failure: why the promise was not kept; empty if it was.
    """

    case: str
    promised: str
    seen: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str = "did not run to its end"

    def saw(self, **figures: float) -> None:
        self.seen |= {name: round(float(value), 3) for name, value in figures.items()}

    def most(self, **figures: float) -> None:
        """Keep the larger of these figures and those seen before."""
        self.saw(**{name: max(value, self.seen.get(name, 0.0)) for name, value in figures.items()})

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def save(rows: list[Row], path: Path = PATH) -> None:
    """Merge the rows into the file; a case that ran again replaces its earlier row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {}
    if path.is_file():
        known = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    known |= {row.case: asdict(row) for row in rows}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path.write_text(json.dumps({"date": date, "machine": machine(), "rows": list(known.values())}, indent=1) + "\n")
