from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from quick import InlinePool, a_run, contents, short

from tgeokd.runs import compare as module
from tgeokd.runs.build import load_data
from tgeokd.runs.compare import compare
from tgeokd.runs.config import load_config, replace
from tgeokd.runs.executors import InProcess
from tgeokd.runs.plan import DataVariant, MethodSpec, parse_method
from tgeokd.runs.results import ComparisonResults, RunResults, TuningRecord
from tgeokd.runs.single import Score, run
from tgeokd.runs.statistics import summarise
from tgeokd.runs.teacher import load_teacher
from tgeokd.utils.errors import DivergenceError, InputError

ROWS = [parse_method(text) for text in ("ce", "kd:alpha=0", "kd:alpha=0.5", "tgeo", "ce@train+val")]
SEEDS = (0, 1, 2)
VARIANTS = [DataVariant("clean", {"noise": 0.0}), DataVariant("noise 30 %", {"noise": 0.3})]


@pytest.fixture
def one_core():
    """Worker processes with one thread, whatever the machine: its numbers are then those of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison: its folder, its results, and its events."""
    out = tmp_path_factory.mktemp("compare") / "deep" / "whole"
    said = []
    results = compare(
        short(), ROWS, SEEDS, out, variants=VARIANTS, executor=InProcess(), on_event=lambda *event: said.append(event)
    )
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
    """A comparison's results without what depends on the clock and the process."""
    timed = {"seconds": 0.0, "peak_memory_mb": 0.0}
    rows = {"seconds": None, "peak_memory_mb": None, "seconds_vs_kd": None, "memory_vs_kd": None}
    return dataclasses.replace(
        results,
        wall_seconds=0.0,
        runs=[dataclasses.replace(run, **timed) for run in results.runs],
        summary=[dataclasses.replace(row, **rows) for row in results.summary],
    )


# ---- what a comparison writes


def test_results_json_is_what_was_returned(whole):
    out, results, _ = whole
    assert ComparisonResults.read(out / "results.json") == results


@pytest.mark.process
@pytest.mark.slow
def test_worker_processes_give_the_same_numbers(one_core, whole, tmp_path):
    found = compare(short(), ROWS[:2], SEEDS[:1], tmp_path / "out", variants=VARIANTS[1:])
    metrics = {(run.variant, run.spec, run.seed): run.metrics for run in whole[1].runs}
    assert [run.metrics for run in found.runs] == [metrics[run.variant, run.spec, run.seed] for run in found.runs]


def test_a_run_in_results_json_has_its_row_as_fields(whole):
    content = json.loads((whole[0] / "results.json").read_text())
    assert content["task"] == "digits"
    for record in content["runs"]:
        assert {"variant", "method", "options", "train_on", "seed", "metrics"} <= record.keys()
        assert {"accuracy", "nll", "val_accuracy", "val_nll"} == set(record["metrics"])
        assert all(type(value) is float for value in record["metrics"].values())
        assert 0 <= record["metrics"]["accuracy"] <= 1
    assert {(r["method"], json.dumps(r["options"]), r["train_on"]) for r in content["runs"]} == {
        (row.method, json.dumps(row.options), row.train_on) for row in ROWS
    }


def test_there_is_one_run_for_each_variant_row_and_seed_in_this_order(whole):
    results = whole[1]
    names = [variant.name for variant in VARIANTS]
    keys = [(run.variant, run.spec, run.seed) for run in results.runs]
    assert keys == [(name, row, seed) for name in names for row in ROWS for seed in SEEDS]
    assert [(row.variant, row.spec) for row in results.summary] == [(name, row) for name in names for row in ROWS]
    assert [(t.variant, t.seed) for t in results.teachers] == [(name, seed) for name in names for seed in SEEDS]
    assert results.variants == names


def test_mean_and_standard_deviation_are_numpy_s(whole):
    runs = whole[1].runs
    for row in whole[1].summary:
        mine = [run for run in runs if (run.variant, run.spec) == (row.variant, row.spec)]
        assert row.runs == len(mine) == 3
        for metric in ("accuracy", "nll", "val_accuracy", "val_nll"):
            values = np.array([run.metrics[metric] for run in mine])
            assert row.metrics[metric].mean == pytest.approx(values.mean(), abs=1e-12)
            assert row.metrics[metric].sd == pytest.approx(values.std(ddof=1), abs=1e-12)
        assert row.seconds.mean == pytest.approx(np.mean([run.seconds for run in mine]))
        kd = [run.seconds for run in runs if (run.variant, run.spec) == (row.variant, ROWS[1])]
        assert row.seconds_vs_kd == pytest.approx(row.seconds.mean / np.mean(kd))


def test_all_rows_of_the_default_method_are_references_and_its_own_row_is_the_main_one(tmp_path, inline):
    rows = [parse_method(text) for text in ("ce", "tgeo", "tgeo:outer=holdout")]
    config = short("student.epochs=1", "teacher.epochs=1")
    results = compare(config, rows, [0], tmp_path / "out", executor=InProcess())
    assert [pair.reference for pair in results.pairs] == [rows[1]] * 2 + [rows[2]] * 2
    assert results.main_pairs == results.pairs[:2]


def test_a_seed_gives_every_method_the_same_split_teacher_start_and_order(whole):
    # plain distillation that gives the teacher no weight is plain training, if and only if all else is the same
    metrics = {(run.variant, run.label, run.seed): run.metrics for run in whole[1].runs}
    for variant in ("clean", "noise 30 %"):
        for seed in SEEDS:
            assert metrics[variant, "kd (alpha=0)", seed] == pytest.approx(metrics[variant, "ce", seed], rel=1e-6)
        assert len({metrics[variant, "ce", seed]["nll"] for seed in SEEDS}) == 3  # and another seed gives others
    for seed in SEEDS:
        assert metrics["clean", "ce", seed] != metrics["noise 30 %", "ce", seed]
        assert metrics["clean", "kd (alpha=0.5)", seed] != metrics["clean", "ce", seed]


def test_a_teacher_s_numbers_are_those_of_its_weights(whole):
    out, results, _ = whole
    record = results.teachers[1]
    config = replace(short("data.noise=0.0"), seed=record.seed)
    data = load_data(config)
    teacher = load_teacher(config, data, out / "clean" / "teacher" / f"seed-{record.seed}.safetensors").eval()
    right = teacher(data.test.inputs).argmax(dim=1) == data.test.target
    assert record.metrics["accuracy"] == pytest.approx(right.double().mean().item())


def test_each_run_can_be_repeated_from_its_own_config(whole):
    out, results, _ = whole
    for variant, folder, row in (("clean", "clean/tgeo", ROWS[3]), ("noise 30 %", "noise-30/ce-train+val", ROWS[4])):
        config = load_config(out / folder / "seed-1" / "config.yaml")
        again = run(config, (out / folder).parent / "teacher" / "seed-1.safetensors")
        found = RunResults.read(out / folder / "seed-1" / "results.json").run
        assert again.metrics == pytest.approx(found.metrics, rel=1e-6)
        (recorded,) = (r for r in results.runs if (r.variant, r.spec, r.seed) == (variant, row, 1))
        assert recorded.metrics == found.metrics


def test_progress_counts_every_training_once(whole):
    total = 2 * 3 * (1 + 5)
    assert [done for _, done, _ in whole[2]] == list(range(total + 1))
    assert {of for _, _, of in whole[2]} == {total}
    assert sum(text.startswith("teacher") for text, _, _ in whole[2]) == 6


# ---- refusals and resuming


def test_an_existing_comparison_is_not_overwritten(copied, inline):
    before = contents(copied)
    with pytest.raises(InputError, match=copied.name):
        compare(short(), ROWS, SEEDS, copied, variants=VARIANTS)
    assert contents(copied) == before
    assert not inline


def test_a_folder_of_a_run_is_not_made_a_comparison(tmp_path, inline):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        compare(short(), ROWS, SEEDS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resuming_a_finished_comparison_runs_nothing(copied, whole, inline):
    before = contents(copied)
    results = compare(short(), ROWS, SEEDS, copied, variants=VARIANTS, resume=True)
    assert not inline
    assert dataclasses.replace(results, wall_seconds=0.0) == dataclasses.replace(whole[1], wall_seconds=0.0)
    after = contents(copied)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"results.json", "results.json.sha256", "comparison.yaml"}
    written = json.loads(after["results.json"][1]) | {"wall_seconds": 0}
    assert written == json.loads(before["results.json"][1]) | {"wall_seconds": 0}


def test_resuming_runs_what_is_missing_and_nothing_else(copied, whole, inline):
    lost = copied / "clean" / "kd-alpha=0.5" / "seed-1"
    shutil.rmtree(lost)
    broken_off = copied / "noise-30" / "tgeo" / "seed-2"  # stopped between its last checkpoint and its results
    (broken_off / "results.json").unlink()
    (broken_off / "student.safetensors").unlink()
    before = contents(copied)
    results = compare(short(), ROWS, SEEDS, copied, variants=VARIANTS, resume=True)
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


@pytest.mark.parametrize("place", ["clean/teacher/seed-0.json", "clean/tgeo/seed-1/results.json"])
def test_results_of_other_settings_or_another_teacher_are_not_reused(copied, inline, place):
    content = json.loads((copied / place).read_text())
    (copied / place).write_text(json.dumps(content | {"key": "another"}))
    with pytest.raises(InputError, match=(copied / place).name):
        compare(short(), ROWS, SEEDS, copied, variants=VARIANTS, resume=True)
    assert not inline


def test_a_lost_teacher_is_trained_again_to_the_same_weights(copied, whole, inline):
    place = "clean/teacher/seed-0"
    for suffix in (".safetensors", ".json"):
        (copied / f"{place}{suffix}").unlink()
    results = compare(short(), ROWS, SEEDS, copied, variants=VARIANTS, resume=True)
    assert timeless(results) == timeless(whole[1])
    assert (copied / f"{place}.safetensors").read_bytes() == (whole[0] / f"{place}.safetensors").read_bytes()
    assert not inline


@pytest.mark.parametrize(
    "other",
    [
        {"config": short("student.epochs=3")},
        {"rows": ROWS[:-1]},
        {"seeds": (0, 1)},
        {"variants": VARIANTS[:1]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_resuming_with_other_settings_is_refused(copied, inline, other):
    before = contents(copied)
    same = {"config": short(), "rows": ROWS, "seeds": SEEDS, "variants": VARIANTS} | other
    with pytest.raises(InputError, match=r"comparison\.yaml"):
        compare(same["config"], same["rows"], same["seeds"], copied, variants=same["variants"], resume=True)
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (["ce", "kd", "ce"], [], "two rows.*ce"),
        (["kd:alpha=0.5", "kd:alpha=0.50"], [], "two rows.*kd"),
        ([], [], "one method and one seed"),
        (["ce", "tgoe"], [], "'tgoe'.*'tgeo'"),
        (["ce", "kd:alpah=0.5"], [], "'alpah'.*'alpha'"),
        (["ce", "kd:alpha=2"], [], "alpha.*2"),
        (["ce", "tgeo@train+val"], [], r"train_on=train\+val"),
        (["ce"], ["temperature=0"], "temperature.*0"),
        (["ce"], ["data.nose=0"], "'nose'"),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_written(tmp_path, inline, rows, settings, message):
    with pytest.raises(InputError, match=message):
        compare(short(*settings), [parse_method(row) for row in rows], [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_seeds_are_refused(tmp_path):
    with pytest.raises(InputError, match="one method and one seed"):
        compare(short(), ROWS, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_setting_is_checked_before_anything_is_written(tmp_path, inline):
    with pytest.raises(InputError, match=r"noise.*7"):
        compare(short(), ROWS, [0], tmp_path / "out", variants=[DataVariant("a"), DataVariant("b", {"noise": 7.0})])
    assert not (tmp_path / "out").exists()


def test_a_seed_given_twice_is_refused(tmp_path, inline):
    with pytest.raises(InputError, match=r"two seeds.*0"):
        compare(short(), ROWS[:1], [0, 0], tmp_path / "out")


def test_settings_whose_folders_would_be_the_same_are_refused(tmp_path, inline):
    variants = [DataVariant("noise 30 %", {"noise": 0.3}), DataVariant("noise (30)", {"noise": 0.0})]
    with pytest.raises(InputError, match="two variants"):
        compare(short(), ROWS[:1], [0], tmp_path / "out", variants=variants)
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_comparison_with_one_line_that_says_why(tmp_path, inline):
    with pytest.raises(DivergenceError, match="NaN") as caught:
        compare(short("student.optimizer.lr=1e30"), ROWS[:2], [0], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_run_that_fails_is_named(tmp_path, inline):
    with pytest.raises(DivergenceError, match=r"kd \(alpha=0\.5\).*seed 4"):
        compare(short("student.optimizer.lr=1e30"), [parse_method("kd:alpha=0.5")], [4], tmp_path / "out")


# ---- rows as text


@pytest.mark.parametrize(
    ("text", "row", "label"),
    [
        ("ce", MethodSpec("ce"), "ce"),
        (" kd ", MethodSpec("kd"), "kd"),
        ("kd:alpha=0.5", MethodSpec("kd", {"alpha": 0.5}), "kd (alpha=0.5)"),
        ("tgeo:outer=union", MethodSpec("tgeo", {"outer": "union"}), "tgeo (outer=union)"),
        ("tgeo:outer=union:lr=0.1", MethodSpec("tgeo", {"outer": "union", "lr": 0.1}), "tgeo (outer=union, lr=0.1)"),
        ("tgeo:vertices=false", MethodSpec("tgeo", {"vertices": False}), "tgeo (vertices=False)"),
        ("tgeo:angles=null", MethodSpec("tgeo", {"angles": None}), "tgeo (angles=None)"),
        ("tgeo:hidden=[8, 4]", MethodSpec("tgeo", {"hidden": [8, 4]}), "tgeo (hidden=[8, 4])"),
        ("ce@train", MethodSpec("ce"), "ce"),
        ("ce@train+val", MethodSpec("ce", train_on="train+val"), "ce (train+val)"),
        ("kd:alpha=0.5@train+val", MethodSpec("kd", {"alpha": 0.5}, "train+val"), "kd (alpha=0.5, train+val)"),
    ],
)
def test_a_row_from_text(text, row, label):
    assert parse_method(text) == row
    assert hash(parse_method(text)) == hash(row)
    assert parse_method(row.text) == row
    assert parse_method(text).label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd:alpha", "'kd:alpha'"),
        ("kd:", "'kd:'"),
        ("ce@val", "'ce@val'"),
        ("ce@train@train+val", "'ce@train@train"),
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


def means(summary, name):
    return [getattr(row, name).mean for row in summary]


def test_the_summary_by_hand():
    first, *_ = rows = summarise(
        [
            a_run("a", "ce", 0, metrics={"accuracy": 0.5}, seconds=1.0),
            a_run("a", "ce", 1, metrics={"accuracy": 0.7}, seconds=3.0),
            a_run("a", "kd:alpha=0.1", seconds=4.0),
            a_run("a", "kd:alpha=0.5", seconds=40.0),
            a_run("b", "ce", seconds=5.0),
        ]
    )
    assert [(row.variant, row.label, row.runs) for row in rows] == [
        ("a", "ce", 2),
        ("a", "kd (alpha=0.1)", 1),
        ("a", "kd (alpha=0.5)", 1),
        ("b", "ce", 1),
    ]
    assert first.metrics["accuracy"].mean == pytest.approx(0.6)
    assert first.metrics["accuracy"].sd == pytest.approx(0.2 / 2**0.5)
    assert first.seconds_vs_kd == pytest.approx(0.5)
    assert rows[2].seconds_vs_kd == pytest.approx(10)
    assert rows[1].metrics["accuracy"].sd is None
    assert rows[3].seconds_vs_kd is None  # its variant has no kd row


def test_memory_and_seconds_are_set_against_the_first_kd_row_of_the_variant():
    rows = summarise(
        [
            a_run("a", "tgeo", 0, seconds=6.0, peak_memory_mb=900),
            a_run("a", "tgeo", 1, seconds=2.0, peak_memory_mb=300),
            a_run("a", "kd:alpha=0.1", 0, seconds=1.0, peak_memory_mb=100),
            a_run("a", "kd:alpha=0.1", 1, seconds=3.0, peak_memory_mb=200),
            a_run("a", "kd", 0, seconds=50.0, peak_memory_mb=5000),
            a_run("b", "kd", 0, seconds=10.0, peak_memory_mb=1000),
            a_run("b", "tgeo", 0, seconds=20.0, peak_memory_mb=500),
        ]
    )
    assert [row.memory_vs_kd for row in rows] == pytest.approx([600 / 150, 1, 5000 / 150, 1, 0.5])
    assert [row.seconds_vs_kd for row in rows] == pytest.approx([2, 1, 25, 1, 2])
    assert means(rows, "peak_memory_mb") == pytest.approx([600, 150, 5000, 1000, 500])
    assert rows[0].best_epoch == 0.5


def aucs(row, *values, variant="a"):
    return [a_run(variant, row, i, metrics={"auc": value}) for i, value in enumerate(values)]


def test_the_gain_of_an_auc_is_relative_to_what_it_is_above_chance():
    # (0.80 - 0.5) / (0.75 - 0.5) - 1 = 0.2, from the means of the seeds
    rows = summarise(
        [*aucs("kd", 0.76, 0.80), *aucs("ce", 0.7, 0.8), *aucs("tgeo", 0.78, 0.82), *aucs("ce@train+val", 0.9, 0.9)]
    )
    assert [row.relative_improvement for row in rows] == pytest.approx([0.28 / 0.25 - 1, 0, 0.2, 0.6])


def test_no_gain_without_an_auc_or_a_row_to_gain_over():
    assert summarise([a_run("a", "ce")])[0].relative_improvement is None
    assert summarise(aucs("kd", 0.8))[0].relative_improvement is None
    (ce, kd) = summarise([*aucs("ce", 0.8), *aucs("kd", 0.8, variant="b")])
    assert ce.relative_improvement == 0
    assert kd.relative_improvement is None  # its variant has no ce


def test_what_tuning_cost_by_hand():
    fields = {"method": "kd", "options": {}, "train_on": "train", "chosen": {}}
    tuning = [
        TuningRecord(variant="a", trials=[{"seconds": 1.5}, {"seconds": 2.25}], **fields),
        TuningRecord(variant="b", trials=[{"seconds": 7.0}], **fields),
    ]
    rows = summarise([a_run("a", "kd"), a_run("a", "ce")], tuning)
    assert [(row.tuning_runs, row.tuning_seconds) for row in rows] == [(2, 3.75), (0, 0)]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_a_recall_that_some_seeds_do_not_have_is_the_mean_of_those_that_do(order):
    metrics = [{"accuracy": 0.5, "recall/u2r": 0.2}, {"accuracy": 0.7}, {"accuracy": 0.9, "recall/u2r": 0.6}]
    (row,) = summarise([a_run("a", "ce", i, metrics=metrics[i]) for i in order])
    assert row.metrics["recall/u2r"].mean == pytest.approx(0.4)
    assert row.metrics["recall/u2r"].sd == pytest.approx(0.4 / 2**0.5)
    assert row.metrics["accuracy"].mean == pytest.approx(0.7)


def test_a_result_goes_through_a_worker_whole():
    import pickle

    for thing in (a_run("a", "kd:alpha=0.5"), Score(0.5, 1.0), InputError("x is wrong"), short()):
        again = pickle.loads(pickle.dumps(thing))
        assert type(again) is type(thing)
        assert str(again) == str(thing)
