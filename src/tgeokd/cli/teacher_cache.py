"""``tgeokd teacher-cache``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tgeokd.cli import options
from tgeokd.cli.options import optional
from tgeokd.cli.output import interruptible, metrics_line, say
from tgeokd.utils.errors import InputError


def teacher_cache(
    task: options.Task,
    out: Annotated[Path, typer.Option(help="Folder of the teacher and its stored predictions.")],
    config: options.ConfigFile = None,
    preset_name: options.Preset = None,
    data_dir: options.DataDir = None,
    seed: options.RunSeed = None,
    views: Annotated[int | None, optional("Augmented views per sample.", "4, 1 without augmentation", min=1)] = None,
    dtype: Annotated[str | None, optional("fp16, bf16 or fp32.", "fp16")] = None,
    top_k: Annotated[int | None, optional("Logits stored per sample, for many classes.", "all", min=1)] = None,
    settings: options.Settings = None,
) -> None:
    """Train a task's teacher and store its predictions for all samples, so that trainings need not compute them.

    The folder holds teacher.safetensors and the predictions, memory-mapped. A training that names the folder is refused if its
    teacher, samples or augmentation differ. distill and compare do all this themselves with teacher_cache={}.

    [bold]Examples[/bold]

    tgeokd teacher-cache cifar100 --data-dir data --views 8 --out teachers/cifar100

    tgeokd distill cifar100 --data-dir data --set teacher.weights=teachers/cifar100/teacher.safetensors
    --set teacher_cache.folder=teachers/cifar100
    """
    from tgeokd.runs.build import load_data
    from tgeokd.runs.config import load_config, replace
    from tgeokd.runs.single import check
    from tgeokd.runs.stored import result_key
    from tgeokd.runs.teacher import build_teacher, cache_teacher_logits, is_network
    from tgeokd.teachers import TeacherCacheOptions
    from tgeokd.utils.run_folder import RunFolder

    chosen = options.config_of(task, config, preset_name, settings, data_dir, seed=seed)
    given = {"views": views, "dtype": dtype, "top_k": top_k, "folder": str(out.resolve())}
    known = {name: value for name, value in given.items() if value is not None}
    cache_options = dataclasses.replace(chosen.teacher_cache or TeacherCacheOptions(), **known)  # type: ignore[arg-type]
    chosen = replace(chosen, teacher_cache=cache_options)
    check(chosen)
    if not is_network(chosen):
        raise InputError("this teacher is not a network: its predictions are stored once anyway, no cache is needed")
    stored = out / "config.yaml"
    if stored.exists() and result_key("teacher", load_config(stored)) != result_key("teacher", chosen):
        raise InputError(f"{out} holds the teacher of other settings (config.yaml); choose another folder")
    with RunFolder(out) as folder, interruptible("continue with the same command"):
        folder.write_yaml("config.yaml", chosen.to_dict())
        data, teacher = load_data(chosen), out / "teacher.safetensors"
        if not teacher.exists():
            say("teacher")
            say(f"  {metrics_line(build_teacher(chosen, data, teacher, progress=True))}")
        say("stored predictions")
        for split, cache in cache_teacher_logits(chosen, data, teacher, out).items():
            size = sum(path.stat().st_size for path in cache.folder.iterdir()) / 1e6
            kept = f"{cache.top_k or 'all'} of {cache.num_classes} classes in {cache.dtype}"
            say(f"  {split}: {len(cache):,} samples, {cache.views} views, {kept}, {size:.3g} MB")
    say(f"to use them: --set teacher.weights={teacher} --set teacher_cache.folder={out}")
