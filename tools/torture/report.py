"""What was tried and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was tried, and what must come of it.
        counts: ``done`` times; ``possible`` where all places are known; every other key is a fault in words.
    """

    what: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """How many times it was tried."""
        return self.counts["done"]

    @property
    def faults(self) -> dict[str, int]:
        """What was not as it must be, with its number."""
        return {text: count for text, count in self.counts.items() if text not in ("done", "possible") and count}

    def __str__(self) -> str:
        of = f" of {self.counts['possible']:,}" if self.counts["possible"] else ""
        faults = "; ".join(f"{text} ({count})" for text, count in self.faults.items())
        return f"| {self.what} | {self.done:,}{of} | {faults or 'none'} |"
