"""``tgeokd demo``."""

from pathlib import Path
from typing import Annotated

import typer

from tgeokd.cli import options
from tgeokd.cli.compare import run_comparison


def demo(
    out: Annotated[Path, typer.Option(help="Folder for results, figures and the report.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per method.")] = 5,
    jobs: options.Jobs = None,
    resume: options.Resume = False,
) -> None:
    """Compare all methods on handwritten digits, on the CPU, in about two minutes.

    A teacher is trained on 600 labelled digits, then small students with every method over five seeds, once with clean labels
    and once with 30 % of the training labels replaced at random (validation labels stay clean). Prints a table for each and
    writes results.json, metrics.jsonl per run, figures and report.html.
    """
    from tgeokd.runs.config import preset
    from tgeokd.runs.demo import DEMO_ROWS, DEMO_VARIANTS

    run_comparison(preset("digits"), DEMO_ROWS, seeds, out, DEMO_VARIANTS, jobs, resume=resume)
