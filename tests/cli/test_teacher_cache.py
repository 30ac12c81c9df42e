"""``tgeokd teacher-cache``, and ``teacher_cache`` in a config, on digits."""

from __future__ import annotations

import pytest
import torch
from command import assert_one_line, assert_refused, results
from quick import set_options, short
from safetensors.torch import load_file

from tgeokd.runs.build import load_data
from tgeokd.runs.config import load_config, override, preset
from tgeokd.runs.single import check
from tgeokd.runs.teacher import load_teacher
from tgeokd.teachers import TeacherCache, TeacherCacheOptions
from tgeokd.teachers.cache.store import write_cache
from tgeokd.utils.errors import InputError

SHORT = set_options()


def test_training_on_stored_predictions_ends_like_computing_them(tgeokd_, tmp_path):
    made = tgeokd_("teacher-cache", "digits", *SHORT, "--dtype", "fp32", "--out", "stored")
    assert made.code == 0, made.err
    assert all(word in made.out for word in ("train", "800", "fp32"))

    config = load_config(tmp_path / "stored" / "config.yaml")
    data = load_data(config)
    teacher = load_teacher(config, data, tmp_path / "stored" / "teacher.safetensors").eval()
    cache = TeacherCache(tmp_path / "stored" / "train")
    for part in (data.train, data.held_out):
        with torch.no_grad():
            expected = teacher(part.inputs)
        torch.testing.assert_close(cache.lookup(part.ids), expected, rtol=1e-5, atol=1e-5)

    weights = ["--set", "teacher.weights=stored/teacher.safetensors"]
    again = [*SHORT, *weights, "--method", "kd"]
    assert tgeokd_("distill", "digits", *again, "--out", "computed").code == 0
    assert tgeokd_("distill", "digits", *again, "--set", "teacher_cache.folder=stored", "--out", "cached").code == 0
    assert not (tmp_path / "cached" / "teacher-cache").exists()
    assert load_config(tmp_path / "cached" / "config.yaml").teacher_cache.folder == str(tmp_path / "stored")
    ends = [load_file(tmp_path / run / "student.safetensors") for run in ("computed", "cached")]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-6)

    # the same command again finds everything there; other settings do not get the old teacher
    before = (tmp_path / "stored" / "train" / "cache.json").stat().st_mtime_ns
    assert tgeokd_("teacher-cache", "digits", *SHORT, "--dtype", "fp32", "--out", "stored").code == 0
    assert (tmp_path / "stored" / "train" / "cache.json").stat().st_mtime_ns == before
    other = tgeokd_("teacher-cache", "digits", *SHORT, "--out", "stored", "--seed", 1)
    assert_refused(other, "stored", "config.yaml")

    stale = tgeokd_("distill", "digits", *SHORT, "--seed", 1, "--set", "teacher_cache.folder=stored", "--out", "stale")
    assert_one_line(stale, 2, "teacher cache", "stale", "weights")


@pytest.mark.slow
def test_a_comparison_queries_the_teacher_of_each_seed_once(tgeokd_, tmp_path, monkeypatch):
    rows = "ce,kd,tgeo,tgeo:outer=union,rw,kd@train+val"
    compare = ["compare", "digits", "--seeds", 2, *SHORT, "--methods", rows]
    queries = []

    def counted(folder, predictions, *details):
        return write_cache(folder, (queries.append(folder) or batch for batch in predictions), *details)

    monkeypatch.setattr("tgeokd.teachers.cached.write_cache", counted)
    computed = tgeokd_(*compare, "--out", "computed")
    assert computed.code == 0, computed.err
    assert not queries
    cached = tgeokd_(*compare, "--set", "teacher_cache={dtype: fp32}", "--out", "cached")
    assert cached.code == 0, cached.err
    caches = sorted(path.parent for path in tmp_path.rglob("cache.json"))
    teachers = tmp_path / "cached" / "default" / "teacher"
    expected = [teachers / f"seed-{seed}.cache" / part for seed in (0, 1) for part in ("held-out", "train")]
    assert caches == expected
    assert len(queries) == 2 * (4 + 1)  # 800 and 200 samples, 256 at a time, for two seeds

    runs = [results(tmp_path / run).runs for run in ("computed", "cached")]
    for one, other in zip(*runs, strict=True):
        assert one.spec == other.spec
        assert one.metrics["nll"] == pytest.approx(other.metrics["nll"], abs=1e-4)
    config = load_config(tmp_path / "cached" / "default" / "kd" / "seed-0" / "config.yaml")
    assert config.teacher_cache == TeacherCacheOptions(dtype="fp32")


def test_without_a_folder_the_run_keeps_it(tgeokd_, tmp_path):
    assert tgeokd_("distill", "digits", *SHORT, "--set", "teacher_cache={}", "--out", "run").code == 0
    assert TeacherCache(tmp_path / "run" / "teacher-cache" / "train").dtype == "fp16"


@pytest.mark.parametrize(
    ("argv", "mentioned"),
    [
        (["--top-k", 10], ["teacher_cache.top_k", "not 10"]),
        (["--dtype", "int8"], ["dtype", "'int8'"]),
        (["--views", 0], ["--views"]),
        (["--set", "teacher.model={name: random_forest}"], ["not a network"]),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tgeokd_, tmp_path, argv, mentioned):
    assert_refused(tgeokd_("teacher-cache", "digits", *SHORT, "--out", "stored", *argv), *mentioned)
    assert not (tmp_path / "stored").exists()


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
