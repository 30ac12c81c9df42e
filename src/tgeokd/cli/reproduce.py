"""``tgeokd reproduce``."""

from pathlib import Path
from typing import Annotated

import typer

from tgeokd.cli import options
from tgeokd.cli.output import interruptible, say
from tgeokd.paper import ANALYSES

_WHAT = typer.Argument(help=f"Analysis: {', '.join(ANALYSES)}.", autocompletion=ANALYSES.keys, show_default=False)
_TASK_HELP = "Task.  \\[default: digits; hil for oversampling]"


def reproduce(
    what: Annotated[str, _WHAT],
    task: Annotated[
        str | None, typer.Argument(help=_TASK_HELP, autocompletion=options.TASKS.keys, show_default=False)
    ] = None,
    preset_name: options.Preset = None,
    data_dir: options.DataDir = None,
    settings: options.Settings = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds: 0, 1, ...")] = 3,
    jobs: Annotated[int | None, options.optional("Parallel processes.", "one per core, for cost one", min=1)] = None,
    out: Annotated[Path | None, options.optional("Folder.", "runs/reproduce-WHAT-TASK")] = None,
) -> None:
    """Repeat an analysis of the TGeo-KD paper, or one that its reviewers asked for.

    Writes WHAT.json (the data) and WHAT.png, and prints three lines on what they show, expected or not. On digits, 30 % of the
    training labels are replaced at random unless data.noise is set (not for cost). An interrupted analysis continues when it
    is started again.

    [bold]Examples[/bold]

    tgeokd reproduce fig4 --seeds 5

    tgeokd reproduce fig4 nsl_kdd --data-dir data
    """
    from tgeokd.paper.base import run_analysis
    from tgeokd.report.analyses import draw_analysis

    analysis = ANALYSES[what]
    task = task or analysis.task
    usual = analysis.settings.get(task, ())
    chosen = options.config_of(task, None, preset_name, [*usual, *(settings or [])], data_dir)
    out = out or Path("runs") / f"reproduce-{what}-{task}"
    with interruptible("continue with the same command"):
        findings = run_analysis(what, chosen, range(seeds), out, jobs)
        figure = draw_analysis(findings, out)
    for line in findings.lines:
        say(line)
    say(f"data: {out / f'{what}.json'}, figure: {figure}")
