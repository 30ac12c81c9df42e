"""``tgeokd report``."""

from __future__ import annotations

from tgeokd.cli import options
from tgeokd.cli.output import say

__all__ = ["report"]


def report(folder: options.Folder) -> None:
    """Draw the figures of a run or a comparison again and write its report.html."""
    from tgeokd.report.html import build_report

    say(f"report: {build_report(folder)}")
