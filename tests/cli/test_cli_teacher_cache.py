"""The command teacher-cache and teacher_cache in a config, as a user would run them on digits."""

from __future__ import annotations

import json

import pytest
import torch
from quick import set_options, short
from safetensors.torch import load_file

from tgeokd.runs.build import load_data
from tgeokd.runs.config import load_config, override, preset
from tgeokd.runs.single import check
from tgeokd.runs.teacher import load_teacher
from tgeokd.teachers import TeacherCache, TeacherCacheOptions
from tgeokd.teachers.cache.writer import write_cache
from tgeokd.utils.errors import InputError

SHORT = set_options()


def assert_refused(outcome, message):
    assert outcome.code == 2, outcome
    assert message in outcome.err
    assert outcome.err.startswith("tgeokd: error: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err


def test_a_teacher_is_asked_beforehand_and_training_on_it_ends_like_asking_it(tgeokd_, tmp_path):
    made = tgeokd_("teacher-cache", "digits", *SHORT, "--dtype", "fp32", "--out", "asked")
    assert made.code == 0, made.err
    assert "train: 800 samples, 1 views, all 10 classes in fp32" in made.out

    config = load_config(tmp_path / "asked" / "config.yaml")
    data = load_data(config)
    teacher = load_teacher(config, data, tmp_path / "asked" / "teacher.safetensors").eval()
    cache = TeacherCache(tmp_path / "asked" / "train")
    for part in (data.train, data.held_out):
        with torch.no_grad():
            expected = teacher(part.inputs)
        torch.testing.assert_close(cache.lookup(part.ids), expected, rtol=1e-5, atol=1e-5)

    weights = ["--set", "teacher.weights=asked/teacher.safetensors"]
    again = [*SHORT, *weights, "--method", "kd"]
    assert tgeokd_("distill", "digits", *again, "--out", "computed").code == 0
    assert tgeokd_("distill", "digits", *again, "--set", "teacher_cache.folder=asked", "--out", "cached").code == 0
    assert not (tmp_path / "cached" / "teacher-cache").exists()
    assert load_config(tmp_path / "cached" / "config.yaml").teacher_cache.folder == str(tmp_path / "asked")
    ends = [load_file(tmp_path / run / "student.safetensors") for run in ("computed", "cached")]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-6)

    # the same command again finds everything there; other settings do not get the old teacher
    before = (tmp_path / "asked" / "train" / "cache.json").stat().st_mtime_ns
    assert tgeokd_("teacher-cache", "digits", *SHORT, "--dtype", "fp32", "--out", "asked").code == 0
    assert (tmp_path / "asked" / "train" / "cache.json").stat().st_mtime_ns == before
    other = tgeokd_("teacher-cache", "digits", *SHORT, "--out", "asked", "--seed", 1)
    assert_refused(other, "asked holds the teacher of other settings (config.yaml); choose another folder")

    stale = tgeokd_("distill", "digits", *SHORT, "--seed", 1, "--set", "teacher_cache.folder=asked", "--out", "stale")
    assert stale.code == 2
    assert stale.err.startswith("tgeokd: error: the teacher cache")
    assert "is stale, made with other teacher weights" in stale.err
    assert len(stale.err.splitlines()) == 1


def test_a_comparison_asks_each_seeds_teacher_once(tgeokd_, tmp_path, monkeypatch):
    rows = "ce,kd,tgeo,tgeo:outer=union,rw,kd@train+val"
    compare = ["compare", "digits", "--seeds", 2, *SHORT, "--methods", rows]
    asked = []

    def counted(folder, predictions, *details):
        return write_cache(folder, (asked.append(folder) or batch for batch in predictions), *details)

    monkeypatch.setattr("tgeokd.teachers.cached.write_cache", counted)
    computed = tgeokd_(*compare, "--out", "computed")
    assert computed.code == 0, computed.err
    assert not asked
    cached = tgeokd_(*compare, "--set", "teacher_cache={dtype: fp32}", "--out", "cached")
    assert cached.code == 0, cached.err
    caches = sorted(path.parent for path in tmp_path.rglob("cache.json"))
    teachers = tmp_path / "cached" / "default" / "teacher"
    expected = [teachers / f"seed-{seed}.cache" / part for seed in (0, 1) for part in ("held-out", "train")]
    assert caches == expected
    assert len(asked) == 2 * (4 + 1)  # 800 and 200 samples, 256 at a time, for two seeds

    results = [json.loads((tmp_path / run / "results.json").read_text())["runs"] for run in ("computed", "cached")]
    for one, other in zip(*results, strict=True):
        assert one["method"] == other["method"]
        assert one["metrics"]["nll"] == pytest.approx(other["metrics"]["nll"], abs=1e-4)
    config = load_config(tmp_path / "cached" / "default" / "kd" / "seed-0" / "config.yaml")
    assert config.teacher_cache == TeacherCacheOptions(dtype="fp32")


def test_without_a_folder_the_run_keeps_it(tgeokd_, tmp_path):
    assert tgeokd_("distill", "digits", *SHORT, "--set", "teacher_cache={}", "--out", "run").code == 0
    assert TeacherCache(tmp_path / "run" / "teacher-cache" / "train").dtype == "fp16"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--top-k", 10], "teacher_cache.top_k must be below the 10 classes, not 10"),
        (["--dtype", "int8"], "dtype of the teacher cache must be one of fp16, bf16, fp32, not 'int8'"),
        (["--views", 0], "--views"),
        (["--set", "teacher.model={name: random_forest}"], "this teacher is no network"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tgeokd_, tmp_path, argv, message):
    assert_refused(tgeokd_("teacher-cache", "digits", *SHORT, "--out", "asked", *argv), message)
    assert not (tmp_path / "asked").exists()


def test_settings_of_the_cache_are_read_like_all_others():
    assert preset("digits").teacher_cache is None
    assert override(preset("digits"), ["teacher_cache={}"]).teacher_cache == TeacherCacheOptions()
    several = override(preset("digits"), ["teacher_cache.views=3", "teacher_cache.top_k=4"])
    assert several.teacher_cache == TeacherCacheOptions(views=3, top_k=4)
    assert override(several, ["teacher_cache=null"]).teacher_cache is None
    with pytest.raises(InputError, match=r"teacher_cache\.view.*views"):
        override(preset("digits"), ["teacher_cache.view=3"])
    with pytest.raises(InputError, match=r"top_k must be below the 10 classes, not 12"):
        check(short("teacher_cache.top_k=12"))
