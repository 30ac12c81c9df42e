"""``tgeokd compare``."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tgeokd.cli import options
from tgeokd.cli.output import console, interruptible, say
from tgeokd.methods.registry import DEFAULT_METHOD, METHODS

if TYPE_CHECKING:
    from rich.table import Table

    from tgeokd.runs.config import RunConfig
    from tgeokd.runs.results import ComparisonResults, DataVariant, MethodSpec

_METHODS_HELP = "Rows, separated by commas, e.g. [b]ce,kd:alpha=0.5,tgeo,ce@train+val[/b]."
_TUNE_HELP = (
    "Trials of hyper-parameters per row, scored on validation samples with a seed of their own; the best is used for all "
    "seeds. 0: the methods' defaults."
)


def compare(
    task: options.Task,
    methods: Annotated[str | None, options.optional(_METHODS_HELP, "every method")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per row: 0, 1, ...")] = 5,
    out: Annotated[Path | None, options.optional("Folder of the comparison.", "runs/compare-TASK")] = None,
    config: options.ConfigFile = None,
    preset_name: options.Preset = None,
    data_dir: options.DataDir = None,
    settings: options.Settings = None,
    tune: Annotated[int, typer.Option(min=0, help=_TUNE_HELP)] = 0,
    jobs: options.Jobs = None,
    resume: options.Resume = False,
) -> None:
    """Compare methods over seeds: the same split, teacher, initial student and budget for every method of a seed.

    A row is a method, with options after colons; @train+val trains on the validation samples too.

    [bold]Examples[/bold]

    tgeokd compare digits --methods ce,kd:alpha=0.5,tgeo,ce@train+val --seeds 5

    tgeokd compare adult --data-dir data --set data.noise=0.2 --tune 6
    """
    from tgeokd.runs.plan import parse_method
    from tgeokd.runs.results import DataVariant

    chosen = options.config_of(task, config, preset_name, settings, data_dir)
    texts = [*(name for name in METHODS if name != DEFAULT_METHOD), DEFAULT_METHOD]
    if methods is not None:
        texts = re.split(r",(?![^\[{]*[\]}])", methods)
    rows = [parse_method(text) for text in texts if text.strip()]
    usual = options.config_of(task, config, preset_name, None, data_dir).data
    changed = [f"{key}={value}" for key, value in chosen.data.items() if usual.get(key) != value]
    variant = DataVariant(", ".join(changed) or "default")
    out = out or Path("runs") / f"compare-{task}"
    run_comparison(chosen, rows, seeds, out, [variant], jobs, tune=tune, resume=resume)


def run_comparison(
    config: RunConfig,
    rows: Sequence[MethodSpec],
    seeds: int,
    out: Path,
    variants: Sequence[DataVariant],
    jobs: int | None,
    *,
    tune: int = 0,
    resume: bool = False,
) -> None:
    """Run a comparison with a progress bar, print its tables and write its report."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tgeokd.report.html import build_report
    from tgeokd.runs.compare import compare

    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    progress = Progress(*columns, console=console())
    bar = progress.add_task("")

    def show(text: str, done: int, total: int) -> None:
        progress.start()  # not before the comparison has accepted its input: an error is one line
        progress.update(bar, description=text, completed=done, total=total)

    with interruptible("continue with the same command and --resume"):
        try:
            results = compare(
                config, rows, range(seeds), out, variants=variants, tune=tune, jobs=jobs, resume=resume, on_event=show
            )
        finally:
            if progress.live.is_started:
                progress.stop()
        report = build_report(out)
    for variant in results.variants:
        _print_variant(results, variant, seeds)
    say(f"report: {report}")


def _print_variant(results: ComparisonResults, variant: str, seeds: int) -> None:
    """Print the table of a data variant, and the differences between the default method and the other rows."""
    from tgeokd.report.tables import comparison_table, formatted, paired_differences, title

    bold = {row.label for row in results.summary if row.method == DEFAULT_METHOD}
    console().print(_table(f"{results.task}, {variant}", *comparison_table(results, variant, brief=True), bold))
    primary = results.primary_metric
    teachers = [teacher.metrics for teacher in results.teachers if teacher.variant == variant]
    known = [metrics[primary] for metrics in teachers if primary in metrics]
    teacher = f"; teacher {title(primary)} {formatted(primary, sum(known) / len(known))}" if known else ""
    spread = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    say(f"test set, last epoch, {spread}{teacher}\n")
    differences = paired_differences(results.main_pairs, variant)
    if differences is not None and seeds > 1:
        console().print(_table(f"paired differences, {variant}", *differences))
        more = "; all pairs are in the report" if len(results.pairs) > len(results.main_pairs) else ""
        say(f"positive: the first is better; 95 % t intervals over the seeds, p corrected by Holm{more}\n")


def _table(title: str, header: list[str], rows: list[list[str]], bold: Collection[str] = ()) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.collapse_padding = True
    for i, name in enumerate(header):
        # on a narrow terminal a long name is folded; a number never is
        table.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row), style="bold" if row[0] in bold else None)
    return table
