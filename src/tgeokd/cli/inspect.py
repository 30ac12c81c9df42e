"""``tgeokd inspect``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from tgeokd.cli import options
from tgeokd.cli.output import console, say

SHOWN = 8  # entries of a list or a mapping on the screen


def inspect(
    path: Annotated[Path, typer.Argument(help="A table, or a folder with one folder of images per class.")],
    label: Annotated[str | None, typer.Option(help="Label column of a table.", show_default=False)] = None,
    settings: options.Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Report what a run would read from a table or a folder of images, before anything is trained.

    Of a table: how it is read, the type chosen for each column, columns left out and why, missing and unseen values, columns
    that look like ids or tell the label, and class counts. The same facts stand in a run's results.json. Of images: classes
    in their order, files left out or unreadable, modes and sizes.

    [bold]Examples[/bold]

    tgeokd inspect clients.csv --label churn --set decimal=,

    tgeokd inspect photos/train
    """
    from tgeokd.runs.config import parse_setting
    from tgeokd.runs.inspect import inspect_data

    if as_json:  # warnings say what is in the facts
        logging.getLogger("tgeokd").setLevel(logging.ERROR)
    given = dict(parse_setting(text.removeprefix("data."), text, "--set key=value") for text in settings or [])
    found = inspect_data(path, label=label, options=given)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        table.add_row(Text(key, style="bold"), Text(_shown(value)))
    console().print(table)
    if leaks := found.get("suspected leaks"):
        say(f"look at {', '.join(leaks)}: each tells the label (nearly) alone")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        parts = [f"{key}: {_shown(item) if isinstance(item, dict) else item}" for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = list(map(str, value))
    else:
        return "none" if value is None else str(value)
    more = f", ... ({len(parts)})" if len(parts) > SHOWN else ""
    return (", ".join(parts[:SHOWN]) or "none") + more
