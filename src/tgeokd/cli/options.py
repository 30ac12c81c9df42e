"""Arguments and options that several commands share, and the config that they stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tgeokd.data.tasks.registry import TASKS
from tgeokd.methods.registry import DEFAULT_METHOD, METHODS
from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.runs.config import RunConfig


def optional(help_text: str, default: str, *names: str, **settings: Any) -> Any:
    """An option that is None unless given; ``default`` describes what applies then."""
    return typer.Option(*names, help=f"{help_text}  \\[default: {default}]", show_default=False, **settings)


_TASK = typer.Argument(help=f"Task: {', '.join(TASKS)}.", autocompletion=TASKS.keys, show_default=False)

Task = Annotated[str, _TASK]
OptionalTask = Annotated[str | None, _TASK]
MethodName = Annotated[
    str | None, optional(f"Method: {', '.join(METHODS)}.", DEFAULT_METHOD, "--method", autocompletion=METHODS.keys)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings, as a run's config.yaml; default: the task's preset."),
]
Preset = Annotated[
    str | None,
    optional("Recipe of the task: [b]lite[/b] (two cores, minutes), [b]paper[/b] (a GPU), ...", "lite", "--preset"),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="TGEOKD_DATA", help="Folder of your data sets.", show_default=False)
]
RunSeed = Annotated[int | None, optional("Seed of split, weights and order.", "0", "--seed")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Parallel processes; default: one per core.")]
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
    """The config of a command line: a file or a preset, changed by the options. Contradictory options are refused."""
    from tgeokd.runs.config import load_config, override, preset, replace

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
    cache = chosen.teacher_cache
    if cache is not None and cache.folder is not None:  # a run may be resumed from another folder
        cache = dataclasses.replace(cache, folder=str(Path(cache.folder).resolve()))
    return with_data_dir(replace(chosen, teacher_cache=cache), data_dir)


def with_data_dir(config: RunConfig, data_dir: Path | None) -> RunConfig:
    """The config with another data folder, where one is given."""
    from tgeokd.runs.config import replace

    return config if data_dir is None else replace(config, data_dir=str(data_dir.resolve()))
