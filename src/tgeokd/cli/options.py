"""Arguments and options that several commands share, and the config that they stand for."""

from __future__ import annotations

from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.runs.config import RunConfig

DEFAULT_METHOD = "tgeo"

# Names while a registry has no module of its own.
_FALLBACK = {
    "methods": ["ada", "anl", "ce", "dkd", "kd", "ls", "rw", "tgeo", "wls"],
    "data.tasks": ["adult", "cifar10", "cifar100", "criteo", "digits", "hil", "imagenet", "nsl_kdd", "tabular"],
}


def _names(package: str, registry: str) -> list[str]:
    """The names in a registry; the modules that define the entries are not imported."""
    if not resources.files("tgeokd").joinpath(*package.split("."), "registry.py").is_file():
        return _FALLBACK[package]
    return list(getattr(import_module(f"tgeokd.{package}.registry"), registry))


def task_names() -> list[str]:
    """Names of the tasks."""
    return _names("data.tasks", "TASKS")


def method_names() -> list[str]:
    """Names of the methods, the default one last."""
    return sorted(_names("methods", "METHODS"), key=lambda name: (name == DEFAULT_METHOD, name))


def analysis_names() -> list[str]:
    """Names of the analyses."""
    from tgeokd.paper import ANALYSES

    return list(ANALYSES)


_TASK_HELP = f"Task: {', '.join(task_names())}."

Task = Annotated[str, typer.Argument(help=_TASK_HELP, autocompletion=task_names, show_default=False)]
OptionalTask = Annotated[str | None, typer.Argument(help=_TASK_HELP, autocompletion=task_names, show_default=False)]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=f"Method: {', '.join(method_names())}.  \\[default: {DEFAULT_METHOD}]",
        autocompletion=method_names,
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings, as a run's config.yaml; default: the task's preset."),
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
RunSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of split, weights and order.  \\[default: 0]", show_default=False),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Parallel processes; default: one per core.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or a comparison.")]
Resume = Annotated[bool, typer.Option("--resume", help="Finish the comparison in --out; finished runs are kept.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, with dots into nested ones, e.g. [b]--set data.noise=0.3[/b], "
        "[b]--set student.optimizer.lr=0.05[/b], [b]--set options.outer=holdout[/b]. Repeatable.",
    ),
]


def config_of(
    task: str | None,
    file: Path | None,
    preset_name: str | None,
    settings: list[str] | None,
    data_dir: Path | None,
    method: str | None = None,
    seed: int | None = None,
) -> RunConfig:
    """The config of a command line: a file or a preset, changed by the options.

    Raises:
        InputError: for options that exclude each other, and whatever the config refuses.
    """
    import dataclasses

    from tgeokd.runs.config import load_config, override, preset, replace

    if task is None and file is None:
        raise InputError(f"name a task ({', '.join(task_names())}), or give --config or --resume")
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
    if options is not None and options.folder is not None:  # a run may be resumed from another folder
        options = dataclasses.replace(options, folder=str(Path(options.folder).resolve()))
    return with_data_dir(replace(chosen, teacher_cache=options), data_dir)


def with_data_dir(config: RunConfig, data_dir: Path | None) -> RunConfig:
    """The config with another data folder, where one is given."""
    from tgeokd.runs.config import replace

    return config if data_dir is None else replace(config, data_dir=str(data_dir.resolve()))
