"""``tgeokd report``."""

from pathlib import Path
from typing import Annotated

import typer

from tgeokd.cli.output import say


def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or a comparison.")]) -> None:
    """Draw the figures of a run or a comparison again and write its report.html."""
    from tgeokd.report.html import build_report

    say(f"report: {build_report(folder)}")
