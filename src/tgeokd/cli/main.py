"""The command `tgeokd`."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tgeokd import __version__
from tgeokd.data import TASKS
from tgeokd.methods import METHODS
from tgeokd.paper import ANALYSES
from tgeokd.paper.base import run_analysis
from tgeokd.report.analyses import draw_analysis
from tgeokd.report.html import build_report
from tgeokd.report.tables import comparison_table, formatted, paired_differences, title
from tgeokd.runs.build import load_data
from tgeokd.runs.compare import compare
from tgeokd.runs.config import RunConfig, load_config, override, preset, replace
from tgeokd.runs.demo import DEMO_ROWS, DEMO_VARIANTS
from tgeokd.runs.plan import parse_method
from tgeokd.runs.predict import predict
from tgeokd.runs.results import DEFAULT_METHOD, DataVariant, MethodSpec
from tgeokd.runs.single import check, run
from tgeokd.runs.teacher import build_teacher, cache_teacher_logits, is_network
from tgeokd.teachers import TeacherCacheOptions
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import RunFolder

__all__ = ["app", "main"]

console = Console()
app = typer.Typer(
    name="tgeokd",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distil a big model into a small one and learn, for every sample, "
    "how much to trust the teacher and how much the label.",
)

Task = Annotated[
    str,
    typer.Argument(help=f"Task to run: {', '.join(TASKS)}.", autocompletion=lambda: list(TASKS), show_default=False),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings (as a run's config.yaml); default: the task's preset."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Recipe shipped for the task: [b]lite[/b] (two cores, minutes), [b]paper[/b] (a GPU), ...  \\[default: lite]",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="TGEOKD_DATA", help="Folder of your data sets.", show_default=False)
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Parallel processes; default: one a core.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, with dots into nested ones, e.g. [b]--set data.noise=0.3[/b], "
        "[b]--set student.optimizer.lr=0.05[/b], [b]--set options.outer=holdout[/b]. Repeatable.",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tgeokd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is chosen automatically.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    logging.getLogger("tgeokd").setLevel(level)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results, figures and the report.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per method.")] = 5,
    jobs: Jobs = None,
) -> None:
    """Show the whole story on real handwritten digits, on the CPU, in about two minutes.

    A teacher is trained on 600 labelled digits, then small students by every method over five seeds, once with clean labels
    and once with 30 % of the training labels replaced at random (held-out labels stay clean). Prints a table per setting and
    writes results.json, metrics.jsonl per run, figures and report.html.
    """
    _compare(preset("digits"), DEMO_ROWS, seeds, out, DEMO_VARIANTS, jobs)


@app.command()
def distill(
    task: Annotated[
        str | None,
        typer.Argument(help=f"Task: {', '.join(TASKS)}.", autocompletion=lambda: list(TASKS), show_default=False),
    ] = None,
    config: ConfigFile = None,
    preset_name: Preset = None,
    data_dir: DataDir = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Method: {', '.join(METHODS)}.  \\[default: tgeo]",
            autocompletion=lambda: list(METHODS),
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of split, weights and order.  \\[default: 0]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.  \\[default: runs/TASK-METHOD-SEED]", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Continue the interrupted run in this folder with its own settings."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Distil one student.

    The folder of the run holds config.yaml (everything needed to run it again), metrics.jsonl (a line an epoch),
    student.safetensors, last.ckpt/, results.json and report.html.

    [bold]Examples[/bold]

    tgeokd distill digits --set data.noise=0.3 --out runs/mine

    tgeokd distill digits --method kd --set options.alpha=0.5 --seed 3

    tgeokd distill --resume runs/mine
    """
    if resume is not None:
        if task or config or preset_name or method or out or settings or seed is not None:
            raise InputError("--resume continues a run with its own settings: give no others")
        out = resume
        chosen = _with_data_dir(load_config(resume / "config.yaml"), data_dir)
        check(chosen)
        folder = RunFolder(out, resume=True, checkpoint_needed=(out / "metrics.jsonl").exists())
    else:
        chosen = _config(task, config, preset_name, settings, data_dir, method, seed)
        out = out or Path("runs") / f"{chosen.task}-{chosen.method}-{chosen.seed}"
        check(chosen)
        folder = RunFolder(out)
        _show_notes(chosen)
        folder.write_yaml("config.yaml", chosen.to_dict())
    teacher = out / "teacher.safetensors"
    if resume is None or not teacher.exists():
        console.print("teacher")
        console.print(f"  {_shown(build_teacher(chosen, load_data(chosen), teacher, progress=True))}")
    console.print(f"student by {chosen.method}")
    result = run(chosen, teacher, out, resume=folder.checkpoint.exists(), progress=True)
    report = build_report(out)
    console.print(f"  {_shown(result.metrics)}, after {result.epochs} epochs in {result.seconds:.1f} s")
    console.print(f"report: {report}")


@app.command("compare")
def compare_command(
    task: Task,
    methods: Annotated[
        str,
        typer.Option(
            help="Rows, comma-separated. Options after colons, training on the held-out samples too after @: "
            "[b]ce,kd:alpha=0.5,tgeo,ce@train+val[/b].",
        ),
    ] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per row: 0, 1, ...")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison.  \\[default: runs/compare-TASK]", show_default=False)
    ] = None,
    config: ConfigFile = None,
    preset_name: Preset = None,
    data_dir: DataDir = None,
    settings: Settings = None,
    tune: Annotated[
        int,
        typer.Option(
            min=0,
            help="Trials of hyper-parameters a row, judged on held-out samples under a seed of their own; the best is used "
            "for all seeds. 0: the methods' defaults.",
        ),
    ] = 0,
    jobs: Jobs = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish the comparison in --out; finished runs are kept.")
    ] = False,
) -> None:
    """Compare methods over seeds: the same split, teacher, initial student and budget for every method of a seed.

    [bold]Examples[/bold]

    tgeokd compare digits --methods ce,kd:alpha=0.5,tgeo,ce@train+val --seeds 5

    tgeokd compare adult --data-dir data --set data.noise=0.2 --tune 6
    """
    chosen = _config(task, config, preset_name, settings, data_dir, None, None)
    entries = [parse_method(text) for text in re.split(r",(?![^\[{]*[\]}])", methods) if text.strip()]
    usual = preset(task, preset_name or "lite").data
    changed = [f"{key}={value}" for key, value in chosen.data.items() if usual.get(key) != value]
    setting = DataVariant(", ".join(changed) or "default")
    out = out or Path("runs") / f"compare-{task}"
    _compare(chosen, entries, seeds, out, [setting], jobs, tune=tune, resume=resume)


@app.command("teacher-cache")
def teacher_cache_command(
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder of the teacher and what it says.")],
    config: ConfigFile = None,
    preset_name: Preset = None,
    data_dir: DataDir = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of split and teacher.  \\[default: 0]", show_default=False)
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            min=1, help="Augmented views of each sample.  \\[default: 4, 1 without augmentation]", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp16, bf16 or fp32.  \\[default: fp16]", show_default=False)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, help="Keep so many logits a sample, for many classes.  \\[default: all]", show_default=False
        ),
    ] = None,
    settings: Settings = None,
) -> None:
    """Make a task's teacher and ask it once about all samples, so that no training has to.

    The folder holds teacher.safetensors and what it says, memory-mapped. A training that names it is refused where teacher,
    samples or augmentation are not the same. distill and compare do all this by themselves with teacher_cache={}.

    [bold]Examples[/bold]

    tgeokd teacher-cache cifar100 --data-dir data --views 8 --out teachers/cifar100

    tgeokd distill cifar100 --data-dir data --set teacher.weights=teachers/cifar100/teacher.safetensors
    --set teacher_cache.folder=teachers/cifar100
    """
    chosen = _config(task, config, preset_name, settings, data_dir, None, seed)
    asked: dict[str, Any] = {"views": views, "dtype": dtype, "top_k": top_k}
    given = {name: value for name, value in asked.items() if value is not None}
    options = dataclasses.replace(chosen.teacher_cache or TeacherCacheOptions(), **given, folder=str(out.resolve()))
    chosen = replace(chosen, teacher_cache=options)
    check(chosen)
    if not is_network(chosen):
        raise InputError("this teacher is no network: its predictions are stored once as it is, no cache is needed")
    if (out / "config.yaml").exists() and _elsewhere(load_config(out / "config.yaml")) != _elsewhere(chosen):
        raise InputError(f"{out} holds the teacher of other settings (config.yaml); choose another folder")
    folder = RunFolder(out)
    folder.write_yaml("config.yaml", chosen.to_dict())
    data, teacher = load_data(chosen), out / "teacher.safetensors"
    if not teacher.exists():
        console.print("teacher")
        console.print(f"  {_shown(build_teacher(chosen, data, teacher, progress=True))}")
    console.print("what it says")
    for part, cache in cache_teacher_logits(chosen, data, teacher, out).items():
        size = sum(path.stat().st_size for path in cache.folder.iterdir()) / 1e6
        kept = "all" if cache.top_k is None else f"{cache.top_k} of"
        console.print(
            f"  {part}: {len(cache):,} samples, {cache.views} views, {kept} {cache.num_classes} classes in {cache.dtype}, "
            f"{size:.3g} MB",
            soft_wrap=True,
        )
    console.print(f"use it: --set teacher.weights={teacher} --set teacher_cache.folder={out}", soft_wrap=True)


@app.command("predict")
def predict_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run on a table.")],
    file: Annotated[Path, typer.Argument(help="Rows to predict, in the format the task reads.")],
    out: Annotated[Path, typer.Option(help="Where to write them: .parquet or .csv.")] = Path("predictions.csv"),
) -> None:
    """Predict new rows with a run's student, through the feature encoder that was saved with it."""
    count = predict(folder, file, out)
    console.print(f"{count:,} rows: {out}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or a comparison.")]) -> None:
    """Draw the figures of a run or a comparison again and write its report.html."""
    console.print(f"report: {build_report(folder)}")


@app.command()
def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            help=f"Analysis: {', '.join(ANALYSES)}.", autocompletion=lambda: list(ANALYSES), show_default=False
        ),
    ],
    task: Annotated[
        str | None,
        typer.Argument(
            help="Task.  \\[default: digits; hil for oversampling]",
            autocompletion=lambda: list(TASKS),
            show_default=False,
        ),
    ] = None,
    preset_name: Preset = None,
    data_dir: DataDir = None,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds: 0, 1, ...")] = 3,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Parallel processes; default: one a core, for cost one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder.  \\[default: runs/reproduce-WHAT-TASK]", show_default=False)
    ] = None,
) -> None:
    """Repeat an analysis of the TGeo-KD paper, or one that its reviewers asked for.

    Writes WHAT.json (the data) and WHAT.png, and says in three lines what they show, expected or not. On digits 30 % of the
    training labels are made wrong unless data.noise is set (not for cost). An interrupted analysis goes on when started again.

    [bold]Examples[/bold]

    tgeokd reproduce fig4 --seeds 5

    tgeokd reproduce fig4 nsl_kdd --data-dir data
    """
    analysis = ANALYSES[what]
    task = task or analysis.task
    usual = analysis.settings.get(task, ())
    chosen = _config(task, None, preset_name, [*usual, *(settings or [])], data_dir, None, None)
    out = out or Path("runs") / f"reproduce-{what}-{task}"
    findings = run_analysis(what, chosen, range(seeds), out, jobs)
    figure = draw_analysis(findings, out)
    for line in findings.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"data: {out / f'{what}.json'}, figure: {figure}", soft_wrap=True)


def main() -> None:
    """MethodSpec point. Exit codes: 0 done, 2 the user's input is wrong (one line says how), 1 anything else."""
    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        print(f"tgeokd: error: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        print("tgeokd: interrupted", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        # Typer's usage errors, which it would draw a box around; its versions differ in the classes they come from.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        message = error.format_message()
        if message:
            print(f"tgeokd: error: {message}", file=sys.stderr)
        else:
            error.show()  # type: ignore[attr-defined]  # no arguments at all: the help
        sys.exit(error.exit_code)


def _config(
    task: str | None,
    file: Path | None,
    preset_name: str | None,
    settings: list[str] | None,
    data_dir: Path | None,
    method: str | None,
    seed: int | None,
) -> RunConfig:
    if task is None and file is None:
        raise InputError(f"name a task ({', '.join(TASKS)}), or give --config or --resume")
    if file is not None and preset_name is not None:
        raise InputError("give --config or --preset, not both")
    chosen = load_config(file) if file is not None else preset(task or "", preset_name or "lite")
    if task is not None and chosen.task != task:
        raise InputError(f"the config is for task {chosen.task!r}, not {task!r}")
    if method is not None and method != chosen.method:
        chosen = replace(chosen, method=method, options={})  # options belong to a method
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    chosen = override(chosen, settings or [])
    options = chosen.teacher_cache
    if options is not None and options.folder is not None:  # a run may be resumed from elsewhere
        options = dataclasses.replace(options, folder=str(Path(options.folder).resolve()))
    return _with_data_dir(replace(chosen, teacher_cache=options), data_dir)


def _with_data_dir(config: RunConfig, data_dir: Path | None) -> RunConfig:
    return config if data_dir is None else replace(config, data_dir=str(data_dir.resolve()))


def _elsewhere(config: RunConfig) -> RunConfig:
    """The config wherever its data and its folder have moved."""
    options = config.teacher_cache and dataclasses.replace(config.teacher_cache, folder=None)
    return replace(config, data_dir=None, teacher_cache=options)


def _show_notes(config: RunConfig) -> None:
    """What was found in the data, before anything is trained on it."""
    data = load_data(config)
    sizes = ", ".join(f"{len(part):,}" for part in (data.train, data.held_out, data.test))  # type: ignore[arg-type]
    console.print(f"data: {sizes} samples to train on, held out, to test on; {data.num_classes} classes")
    for key, value in data.notes.items():
        console.print(f"  {key}: {value}", markup=False, highlight=False)


def _shown(metrics: dict[str, float]) -> str:
    """The metrics of the test set in a line."""
    of_test = {name: value for name, value in metrics.items() if not name.startswith("val_") and "/" not in name}
    return "test " + ", ".join(f"{title(name)} {formatted(name, value)}" for name, value in of_test.items())


def _compare(
    config: RunConfig,
    rows: list[MethodSpec],
    seeds: int,
    out: Path,
    variants: list[DataVariant],
    jobs: int | None,
    *,
    tune: int = 0,
    resume: bool = False,
) -> None:
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, console=console)
    bar = progress.add_task("")

    def show(text: str, done: int, total: int) -> None:
        progress.start()  # not before the comparison has accepted its input: an error is one line
        progress.update(bar, description=text, completed=done, total=total)

    try:
        results = compare(
            config, rows, range(seeds), out, variants=variants, tune=tune, jobs=jobs, resume=resume, on_event=show
        )
    finally:
        if progress.live.is_started:
            progress.stop()
    for variant in results.variants:
        table = comparison_table(results, variant, brief=True)
        ours = {row.label for row in results.summary if row.method == DEFAULT_METHOD}
        console.print(_drawn(f"{results.task}, {variant}", *table, ours))
        teachers = [teacher.metrics for teacher in results.teachers if teacher.variant == variant]
        spread = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
        primary = results.primary_metric
        known = [metrics[primary] for metrics in teachers if primary in metrics]
        teacher = f"; teacher {title(primary)} {formatted(primary, sum(known) / len(known))}" if known else ""
        console.print(f"test set, last epoch, {spread}{teacher}\n")
        paired = paired_differences(results.main_pairs, variant)
        if paired is not None and seeds > 1:
            console.print(_drawn(f"paired differences, {variant}", *paired))
            console.print("positive: the first is better; 95 % t intervals over the seeds, p corrected by Holm\n")
    console.print(f"report: {build_report(out)}")


def _drawn(title: str, header: list[str], rows: list[list[str]], bold: Collection[str] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for i, name in enumerate(header):
        # on a narrow terminal a long name is folded; a number never is
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in bold else None)
    return table
