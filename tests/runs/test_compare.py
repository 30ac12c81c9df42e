from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from quick import InlinePool, contents, short

from tgeokd.runs import compare as module
from tgeokd.runs.build import load_data
from tgeokd.runs.compare import compare
from tgeokd.runs.config import RunConfig
from tgeokd.runs.plan import DataVariant, MethodSpec, parse_method
from tgeokd.runs.single import RunResult, Score, run
from tgeokd.runs.summary import summarise
from tgeokd.runs.teacher import load_teacher
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace, validate_config

ROWS = [parse_method(text) for text in ("ce", "kd:alpha=0", "kd:alpha=0.5", "tgeo", "ce@train+val")]
SEEDS = (0, 1, 2)
SETTINGS = [DataVariant("clean", {"noise": 0.0}), DataVariant("noise 30 %", {"noise": 0.3})]


@pytest.fixture(scope="module")
def one_core():
    """Worker processes with one thread, whatever the machine: its numbers are then those of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def whole(one_core, tmp_path_factory):
    """A comparison in real worker processes: its folder, what it returned, and what it said meanwhile."""
    out = tmp_path_factory.mktemp("compare") / "deep" / "whole"
    said = []
    results = compare(short(), ROWS, SEEDS, out, settings=SETTINGS, on_event=lambda *event: said.append(event))
    return out, results, said


@pytest.fixture
def inline(monkeypatch):
    """Jobs are done in this process, and every run that is really done is counted."""
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    done = []

    def counted(config, teacher, out, **options):
        done.append(out)
        return run(config, teacher, out, **options)

    monkeypatch.setattr(module, "run", counted)
    return done


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


def timeless(results):
    """A comparison's results without what depends on the clock."""
    measured = ("seconds", "peak_memory_mb", "memory")
    return {
        "task": results["task"],
        "teachers": results["teachers"],
        "paired": results["paired"],
        "runs": [{k: v for k, v in r.items() if not k.startswith(measured)} for r in results["runs"]],
        "summary": [{k: v for k, v in row.items() if not k.startswith(measured)} for row in results["summary"]],
    }


# ---- what a comparison writes


def test_results_json_is_what_was_returned(whole):
    out, results, _ = whole
    assert json.loads((out / "results.json").read_text()) == results


def test_results_have_the_promised_format(whole):
    results = whole[1]
    assert results["task"] == "digits"
    for record in results["runs"]:
        assert isinstance(record["setting"], str)
        assert isinstance(record["method"], str)
        assert type(record["seed"]) is int
        assert type(record["seconds"]) is float
        assert {"accuracy", "nll", "val_accuracy", "val_nll"} == set(record["metrics"])
        assert all(type(value) is float for value in record["metrics"].values())
        assert 0 <= record["metrics"]["accuracy"] <= 1
    for row in results["summary"]:
        assert {"setting", "method", "accuracy_mean", "accuracy_std", "nll_mean", "nll_std"} <= set(row)


def test_there_is_one_run_for_each_setting_row_and_seed_in_this_order(whole):
    labels = ["ce", "kd (alpha=0)", "kd (alpha=0.5)", "tgeo", "ce (train+val)"]
    places = ["clean", "noise 30 %"]
    keys = [(r["setting"], r["method"], r["seed"]) for r in whole[1]["runs"]]
    assert keys == [(place, label, seed) for place in places for label in labels for seed in SEEDS]
    assert [(row["setting"], row["method"]) for row in whole[1]["summary"]] == [(p, m) for p in places for m in labels]
    assert [(t["setting"], t["seed"]) for t in whole[1]["teachers"]] == [(p, s) for p in places for s in SEEDS]


def test_mean_and_standard_deviation_are_numpy_s(whole):
    runs = whole[1]["runs"]
    for row in whole[1]["summary"]:
        mine = [r for r in runs if (r["setting"], r["method"]) == (row["setting"], row["method"])]
        assert row["runs"] == len(mine) == 3
        for metric in ("accuracy", "nll", "val_accuracy", "val_nll"):
            values = np.array([r["metrics"][metric] for r in mine])
            assert row[f"{metric}_mean"] == pytest.approx(values.mean(), abs=1e-12)
            assert row[f"{metric}_std"] == pytest.approx(values.std(ddof=1), abs=1e-12)
        assert row["seconds_mean"] == pytest.approx(np.mean([r["seconds"] for r in mine]))
        kd = [r["seconds"] for r in runs if (r["setting"], r["method"]) == (row["setting"], "kd (alpha=0)")]
        assert row["seconds_vs_kd"] == pytest.approx(row["seconds_mean"] / np.mean(kd))


def test_a_seed_gives_every_method_the_same_split_teacher_start_and_order(whole):
    # plain distillation that gives the teacher no weight is plain training, if and only if all else is the same
    metrics = {(r["setting"], r["method"], r["seed"]): r["metrics"] for r in whole[1]["runs"]}
    for setting in ("clean", "noise 30 %"):
        for seed in SEEDS:
            assert metrics[setting, "kd (alpha=0)", seed] == pytest.approx(metrics[setting, "ce", seed], rel=1e-6)
        assert len({metrics[setting, "ce", seed]["nll"] for seed in SEEDS}) == 3  # and another seed gives others
    for seed in SEEDS:
        assert metrics["clean", "ce", seed] != metrics["noise 30 %", "ce", seed]
        assert metrics["clean", "kd (alpha=0.5)", seed] != metrics["clean", "ce", seed]


def test_a_teacher_s_numbers_are_those_of_its_weights(whole):
    out, results, _ = whole
    record = results["teachers"][1]
    config = replace(short("data.noise=0.0"), seed=record["seed"])
    data = load_data(config)
    teacher = load_teacher(config, data, out / "clean" / "teacher" / f"seed-{record['seed']}.safetensors").eval()
    right = teacher(data.test.inputs).argmax(dim=1) == data.test.target
    assert record["metrics"]["accuracy"] == pytest.approx(right.double().mean().item())


def test_each_run_can_be_repeated_from_its_own_config(whole):
    out, results, _ = whole
    for setting, row, label in (("clean", "tgeo", "tgeo"), ("noise-30", "ce-train+val", "ce (train+val)")):
        folder = out / setting / row / "seed-1"
        config = validate_config(RunConfig, yaml.safe_load((folder / "config.yaml").read_text()))
        again = run(config, out / setting / "teacher" / "seed-1.safetensors")
        found = json.loads((folder / "results.json").read_text())
        assert again.metrics == pytest.approx(found["metrics"], rel=1e-6)
        recorded = next(
            r
            for r in results["runs"]
            if (r["method"], r["seed"]) == (label, 1) and r["setting"].startswith(setting.split("-")[0])
        )
        assert recorded["metrics"] == found["metrics"]


def test_progress_counts_every_training_once(whole):
    total = 2 * 3 * (1 + 5)
    assert [done for _, done, _ in whole[2]] == list(range(total + 1))
    assert {of for _, _, of in whole[2]} == {total}
    assert sum(text.startswith("teacher") for text, _, _ in whole[2]) == 6


# ---- refusals and resuming


def test_an_existing_comparison_is_not_overwritten(copied, inline):
    before = contents(copied)
    with pytest.raises(InputError, match="already holds a comparison; choose another folder, or resume it"):
        compare(short(), ROWS, SEEDS, copied, settings=SETTINGS)
    assert contents(copied) == before
    assert not inline


def test_a_folder_of_a_run_is_not_made_a_comparison(tmp_path, inline):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="already holds a run"):
        compare(short(), ROWS, SEEDS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resuming_a_finished_comparison_runs_nothing(copied, whole, inline):
    before = contents(copied)
    results = compare(short(), ROWS, SEEDS, copied, settings=SETTINGS, resume=True)
    assert not inline
    assert results | {"wall_seconds": 0} == whole[1] | {"wall_seconds": 0}
    after = contents(copied)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"results.json", "comparison.yaml"}
    written = json.loads(after["results.json"][1]) | {"wall_seconds": 0}
    assert written == json.loads(before["results.json"][1]) | {"wall_seconds": 0}


def test_resuming_runs_what_is_missing_and_nothing_else(copied, whole, inline):
    lost = copied / "clean" / "kd-alpha=0.5" / "seed-1"
    shutil.rmtree(lost)
    broken_off = copied / "noise-30" / "tgeo" / "seed-2"  # stopped between its last checkpoint and its results
    (broken_off / "results.json").unlink()
    (broken_off / "student.safetensors").unlink()
    before = contents(copied)
    results = compare(short(), ROWS, SEEDS, copied, settings=SETTINGS, resume=True)
    assert sorted(inline) == sorted([lost, broken_off])
    assert timeless(results) == timeless(whole[1])
    after = contents(copied, "*metrics.jsonl")
    kept = {
        name: content
        for name, content in before.items()
        if name in after and not name.startswith("noise-30/tgeo/seed-2")
    }
    assert len(kept) == 2 * 5 * 3 - 2
    assert {name: after[name] for name in kept} == kept
    weights = "student.safetensors"
    for folder in (lost, broken_off):
        original = whole[0] / folder.relative_to(copied)
        assert (folder / weights).read_bytes() == (original / weights).read_bytes()


def test_a_lost_teacher_is_trained_again_to_the_same_weights(copied, whole, inline):
    place = "clean/teacher/seed-0"
    for suffix in (".safetensors", ".json"):
        (copied / f"{place}{suffix}").unlink()
    results = compare(short(), ROWS, SEEDS, copied, settings=SETTINGS, resume=True)
    assert timeless(results) == timeless(whole[1])
    assert (copied / f"{place}.safetensors").read_bytes() == (whole[0] / f"{place}.safetensors").read_bytes()
    assert not inline


@pytest.mark.parametrize(
    "other",
    [
        {"config": short("student.epochs=3")},
        {"entries": ROWS[:-1]},
        {"seeds": (0, 1)},
        {"settings": SETTINGS[:1]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_resuming_with_other_settings_is_refused(copied, inline, other):
    before = contents(copied)
    same = {"config": short(), "entries": ROWS, "seeds": SEEDS, "settings": SETTINGS} | other
    with pytest.raises(InputError, match=r"has other settings than this one \(comparison\.yaml\)"):
        compare(same["config"], same["entries"], same["seeds"], copied, settings=same["settings"], resume=True)
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (["ce", "kd", "ce"], [], "two rows of the comparison are the same"),
        (["kd:alpha=0.5", "kd:alpha=0.50"], [], "two rows of the comparison are the same"),
        ([], [], "at least one method and one seed"),
        (["ce", "tgoe"], [], "unknown method 'tgoe'; did you mean 'tgeo'"),
        (["ce", "kd:alpah=0.5"], [], "unknown option of method 'kd' 'alpah'; did you mean 'alpha'"),
        (["ce", "kd:alpha=2"], [], r"alpha must lie in \[0, 1\], not 2"),
        (["ce", "tgeo@train+val"], [], "train_on=train\\+val leaves none"),
        (["ce"], ["temperature=0"], "temperature must be > 0"),
        (["ce"], ["data.nose=0"], "unknown option of task 'digits' 'nose'"),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_written(tmp_path, inline, rows, settings, message):
    with pytest.raises(InputError, match=message):
        compare(short(*settings), [parse_method(row) for row in rows], [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_seeds_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least one method and one seed"):
        compare(short(), ROWS, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_setting_is_checked_before_anything_is_written(tmp_path, inline):
    with pytest.raises(InputError, match="noise must lie in"):
        compare(short(), ROWS, [0], tmp_path / "out", settings=[DataVariant("a"), DataVariant("b", {"noise": 7.0})])
    assert not (tmp_path / "out").exists()


def test_a_seed_given_twice_is_refused(tmp_path, inline):
    with pytest.raises(InputError, match="two seeds of the comparison are the same"):
        compare(short(), ROWS[:1], [0, 0], tmp_path / "out")


def test_settings_whose_folders_would_be_the_same_are_refused(tmp_path, inline):
    settings = [DataVariant("noise 30 %", {"noise": 0.3}), DataVariant("noise (30)", {"noise": 0.0})]
    with pytest.raises(InputError, match="two settings of the comparison are the same"):
        compare(short(), ROWS[:1], [0], tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_comparison_with_one_line_that_says_why(tmp_path, inline):
    with pytest.raises(InputError, match="student's logits are NaN or infinite in step") as caught:
        compare(short("student.optimizer.lr=1e30"), ROWS[:2], [0], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_run_that_fails_is_named(tmp_path, inline):
    with pytest.raises(InputError, match=r"kd \(alpha=0\.5\).*seed 4"):
        compare(short("student.optimizer.lr=1e30"), [parse_method("kd:alpha=0.5")], [4], tmp_path / "out")


# ---- rows as text


@pytest.mark.parametrize(
    ("text", "entry", "label"),
    [
        ("ce", MethodSpec("ce"), "ce"),
        (" kd ", MethodSpec("kd"), "kd"),
        ("kd:alpha=0.5", MethodSpec("kd", {"alpha": 0.5}), "kd (alpha=0.5)"),
        ("tgeo:outer=union", MethodSpec("tgeo", {"outer": "union"}), "tgeo (outer=union)"),
        ("tgeo:outer=union:every=4", MethodSpec("tgeo", {"outer": "union", "every": 4}), "tgeo (outer=union, every=4)"),
        ("tgeo:vertices=false", MethodSpec("tgeo", {"vertices": False}), "tgeo (vertices=False)"),
        ("tgeo:angles=null", MethodSpec("tgeo", {"angles": None}), "tgeo (angles=None)"),
        ("tgeo:hidden=[8, 4]", MethodSpec("tgeo", {"hidden": [8, 4]}), "tgeo (hidden=[8, 4])"),
        ("ce@train", MethodSpec("ce"), "ce"),
        ("ce@train+val", MethodSpec("ce", train_on="train+val"), "ce (train+val)"),
        ("kd:alpha=0.5@train+val", MethodSpec("kd", {"alpha": 0.5}, "train+val"), "kd (alpha=0.5, train+val)"),
    ],
)
def test_a_row_from_text(text, entry, label):
    assert parse_method(text) == entry
    assert parse_method(text).label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd:alpha", "written method:key=value, not 'kd:alpha'"),
        ("kd:", "written method:key=value, not 'kd:'"),
        ("ce@val", "'ce@val' must end in @train or @train\\+val"),
        ("ce@train@train+val", "must end in @train"),
    ],
)
def test_a_row_that_is_no_row_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_method(text)


def test_a_value_that_is_not_yaml_is_refused():
    with pytest.raises(InputError, match="kd:alpha="):
        parse_method("kd:alpha=[")


def test_a_row_replaces_method_options_and_training_samples_alone():
    config = short("options.outer=union")
    applied = parse_method("kd:alpha=0.5@train+val").apply(config)
    assert (applied.method, applied.options, applied.train_on) == ("kd", {"alpha": 0.5}, "train+val")
    back = replace(applied, method=config.method, options=config.options, train_on=config.train_on)
    assert back == config


# ---- the summary


def record(setting, method, seed, accuracy, seconds, **more):
    return {
        "setting": setting,
        "method": method,
        "trains_on_held_out": False,
        "seed": seed,
        "metrics": {"accuracy": accuracy},
        "seconds": seconds,
        "epochs": 3,
        "best_epoch": seed,
        "peak_memory_mb": 100 * seconds,
    } | more


def test_the_summary_by_hand():
    rows = summarise(
        [
            record("a", "ce", 0, 0.5, 1.0),
            record("a", "ce", 1, 0.7, 3.0),
            record("a", "kd (alpha=0.1)", 0, 0.9, 4.0),
            record("a", "kd (alpha=0.5)", 0, 0.9, 40.0),
            record("b", "ce", 0, 0.25, 5.0),
        ]
    )
    assert [(row["setting"], row["method"], row["runs"]) for row in rows] == [
        ("a", "ce", 2),
        ("a", "kd (alpha=0.1)", 1),
        ("a", "kd (alpha=0.5)", 1),
        ("b", "ce", 1),
    ]
    assert rows[0]["accuracy_mean"] == pytest.approx(0.6)
    assert rows[0]["accuracy_std"] == pytest.approx(0.2 / 2**0.5)
    assert rows[0]["seconds_vs_kd"] == pytest.approx(0.5)
    assert rows[2]["seconds_vs_kd"] == pytest.approx(10)
    assert rows[1]["accuracy_std"] is None
    assert rows[3]["seconds_vs_kd"] is None  # no kd row in its setting


def test_memory_and_seconds_are_set_against_the_first_kd_row_of_the_setting():
    rows = summarise(
        [
            record("a", "tgeo", 0, 0.5, 6.0, peak_memory_mb=900),
            record("a", "tgeo", 1, 0.5, 2.0, peak_memory_mb=300),
            record("a", "kd (alpha=0.1)", 0, 0.5, 1.0, peak_memory_mb=100),
            record("a", "kd (alpha=0.1)", 1, 0.5, 3.0, peak_memory_mb=200),
            record("a", "kd", 0, 0.5, 50.0, peak_memory_mb=5000),
            record("b", "kd", 0, 0.5, 10.0, peak_memory_mb=1000),
            record("b", "tgeo", 0, 0.5, 20.0, peak_memory_mb=500),
        ]
    )
    assert [row["memory_vs_kd"] for row in rows] == pytest.approx([600 / 150, 1, 5000 / 150, 1, 0.5])
    assert [row["seconds_vs_kd"] for row in rows] == pytest.approx([2, 1, 25, 1, 2])
    assert [row["peak_memory_mb_mean"] for row in rows] == pytest.approx([600, 150, 5000, 1000, 500])
    assert rows[0]["best_epoch_mean"] == 0.5


def aucs(method, *values, setting="a"):
    return [record(setting, method, i, 0.5, 1.0, metrics={"auc": value}) for i, value in enumerate(values)]


def test_the_gain_of_an_auc_is_relative_to_what_it_is_above_chance():
    # (0.80 - 0.5) / (0.75 - 0.5) - 1 = 0.2, from the means of the seeds
    runs = [
        *aucs("kd", 0.76, 0.80),
        *aucs("ce", 0.7, 0.8),
        *aucs("tgeo", 0.78, 0.82),
        *aucs("ce (train+val)", 0.9, 0.9),
    ]
    rows = summarise(runs)
    assert [row["relative_improvement"] for row in rows] == pytest.approx([0.28 / 0.25 - 1, 0, 0.2, 0.6])


def test_no_gain_without_an_auc_or_a_row_to_gain_over():
    assert "relative_improvement" not in summarise([record("a", "ce", 0, 0.5, 1.0)])[0]
    assert "relative_improvement" not in summarise(aucs("kd", 0.8))[0]
    (ce, kd) = summarise([*aucs("ce", 0.8), *aucs("kd", 0.8, setting="b")])
    assert ce["relative_improvement"] == 0
    assert "relative_improvement" not in kd  # its setting has no ce


def test_what_tuning_cost_by_hand():
    tuning = [
        {"setting": "a", "method": "kd", "trials": [{"seconds": 1.5}, {"seconds": 2.25}]},
        {"setting": "b", "method": "kd", "trials": [{"seconds": 7.0}]},
    ]
    rows = summarise([record("a", "kd", 0, 0.5, 1.0), record("a", "ce", 0, 0.5, 1.0)], tuning)
    assert [(row["tuning_runs"], row["tuning_seconds"]) for row in rows] == [(2, 3.75), (0, 0)]


def test_a_recall_that_some_seeds_do_not_have_is_the_mean_of_those_that_do():
    metrics = [{"accuracy": 0.5, "recall/u2r": 0.2}, {"accuracy": 0.7}, {"accuracy": 0.9, "recall/u2r": 0.6}]
    (row,) = summarise([record("a", "ce", i, 0.5, 1.0, metrics=each) for i, each in enumerate(metrics)])
    assert row["recall/u2r_mean"] == pytest.approx(0.4)
    assert row["recall/u2r_std"] == pytest.approx(0.4 / 2**0.5)
    assert row["accuracy_mean"] == pytest.approx(0.7)


def test_a_recall_that_the_first_seed_does_not_have_is_there_all_the_same():
    metrics = [{"accuracy": 0.7}, {"accuracy": 0.5, "recall/u2r": 0.2}]
    (row,) = summarise([record("a", "ce", i, 0.5, 1.0, metrics=each) for i, each in enumerate(metrics)])
    assert row["recall/u2r_mean"] == pytest.approx(0.2)
    assert row["recall/u2r_std"] is None


def test_a_result_goes_through_a_worker_whole():
    import pickle

    for thing in (RunResult({"accuracy": 0.5}, 1.0, 2, 1, 300.0), Score(0.5, 1.0), InputError("x is wrong")):
        again = pickle.loads(pickle.dumps(thing))
        assert type(again) is type(thing)
        assert str(again) == str(thing)
