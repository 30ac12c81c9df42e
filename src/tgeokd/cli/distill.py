"""``tgeokd distill``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tgeokd.cli import options
from tgeokd.cli.output import interruptible, metrics_line, say
from tgeokd.utils.errors import DivergenceError, InputError

if TYPE_CHECKING:
    from tgeokd.data import TaskData

_RESUME_HELP = "Continue the interrupted run in this folder with its own settings, or with those of --set from here on."


def distill(
    task: options.OptionalTask = None,
    config: options.ConfigFile = None,
    preset_name: options.Preset = None,
    data_dir: options.DataDir = None,
    method: options.MethodName = None,
    seed: options.RunSeed = None,
    out: Annotated[Path | None, options.optional("Folder of the run.", "runs/TASK-METHOD-SEED")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help=_RESUME_HELP)] = None,
    best: Annotated[bool, typer.Option("--best", help="With --resume: go on from the best checkpoint.")] = False,
    settings: options.Settings = None,
) -> None:
    """Distil one student.

    The folder of the run holds config.yaml (everything needed to repeat it), metrics.jsonl (one line per epoch),
    student.safetensors, checkpoints/, results.json and report.html.

    [bold]Examples[/bold]

    tgeokd distill digits --set data.noise=0.3 --out runs/mine

    tgeokd distill digits --method kd --set options.alpha=0.5 --seed 3

    tgeokd distill --resume runs/mine

    tgeokd distill --resume runs/mine --set student.epochs=60
    """
    from tgeokd.report.html import build_report
    from tgeokd.runs.build import load_data
    from tgeokd.runs.config import load_config
    from tgeokd.runs.resumed import changed_config
    from tgeokd.runs.single import check, run
    from tgeokd.runs.teacher import build_teacher, forget_training
    from tgeokd.utils.run_folder import RunFolder

    accepted: tuple[str, ...] = ()
    if resume is not None:
        if task or config or preset_name or method or out or seed is not None:
            raise InputError("--resume continues a run with its own settings: change single ones with --set")
        out = resume
        chosen, accepted = changed_config(load_config(out / "config.yaml"), settings or [])
        chosen = options.with_data_dir(chosen, data_dir)
        check(chosen)
        folder = RunFolder(out, resume=True, checkpoint_needed=(out / "metrics.jsonl").exists())
    elif best:
        raise InputError("--best goes on with a run: give --resume DIR too")
    else:
        chosen = options.config_of(task, config, preset_name, settings, data_dir, method, seed)
        out = out or Path("runs") / f"{chosen.task}-{chosen.method}-{chosen.seed}"
        check(chosen)
        folder = RunFolder(out)
        _say_data(load_data(chosen))
        folder.write_yaml("config.yaml", chosen.to_dict())
    with folder, interruptible(f"continue with: tgeokd distill --resume {out}"):
        teacher = out / "teacher.safetensors"
        if resume is None or not teacher.exists():
            say("teacher")
            say(f"  {metrics_line(build_teacher(chosen, load_data(chosen), teacher, progress=True))}")
        forget_training(teacher)  # of a process that was killed before it did
        say(f"student by {chosen.method}")
        begun = folder.has_checkpoint
        if best and not begun:
            raise InputError(f"--best: {out} holds no checkpoint of the student")
        if settings and not begun:
            folder.write_yaml("config.yaml", chosen.to_dict())
        changes = accepted if settings and begun and resume is not None else None
        try:
            going_on: Literal["best"] | bool = "best" if best else begun
            result = run(chosen, teacher, out, resume=going_on, progress=True, accept_changes=changes)
        except DivergenceError as error:
            if not folder.has_checkpoint:  # it was in the first epoch
                raise
            raise DivergenceError(
                f"{error}. The last checkpoint is kept: tgeokd distill --resume {out} --set student.optimizer.lr=... goes "
                "on from there with another rate; --set on_divergence=skip or rollback goes on by itself"
            ) from error
        report = build_report(out)
    say(f"  {metrics_line(result.metrics)}, after {result.epochs} epochs in {result.seconds:.1f} s")
    say(f"report: {report}")


def _say_data(data: TaskData) -> None:
    sizes = zip(("training", "validation", "test"), (data.train, data.held_out, data.test), strict=True)
    shown = ", ".join(f"{len(split):,} {name}" for name, split in sizes)  # type: ignore[arg-type]
    say(f"data: {shown} samples; {data.num_classes} classes")
    if data.class_names:
        say(
            f"  classes, in this order: {', '.join(data.class_names[:20])}{', ...' if len(data.class_names) > 20 else ''}"
        )
    for key, value in data.notes.items():
        say(f"  {key}: {value}")
