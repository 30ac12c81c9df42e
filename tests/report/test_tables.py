"""Tables of comparisons, cell by cell."""

from __future__ import annotations

import pytest

from tgeokd.report.tables import comparison_table, formatted, paired_differences, title
from tgeokd.runs.statistics import paired_table
from tgeokd.runs.summary import summarise


def row(method="kd", **values):
    """A summary's row by hand; a value of a metric is its mean."""
    defaults = {
        "setting": "clean",
        "method": method,
        "runs": 2,
        "accuracy_mean": 0.91234,
        "accuracy_std": 0.01111,
        "nll_mean": 0.25,
        "nll_std": 0.5,
        "val_accuracy_mean": 0.9,
        "val_accuracy_std": 0.1,
        "val_nll_mean": 0.3,
        "val_nll_std": 0.1,
        "best_epoch_mean": 11.5,
        "seconds_mean": 1.234,
        "seconds_vs_kd": 1.0,
        "peak_memory_mb_mean": 345.6,
        "memory_vs_kd": 1.0,
        "tuning_runs": 0,
        "tuning_seconds": 0,
    }
    return defaults | values


def table_of(*rows, primary="accuracy", brief=False, **results):
    return comparison_table({"summary": list(rows), "primary_metric": primary, **results}, "clean", brief=brief)


ACCURACY = ["method", "accuracy, %", "NLL", "held-out", "s", "x kd", "best epoch", "MiB", "MiB, x kd"]


def test_the_table_of_an_accuracy_task():
    ce = row("ce", accuracy_std=None, nll_std=None, seconds_vs_kd=None, memory_vs_kd=None)
    assert table_of(row(), ce) == (
        ACCURACY,
        [
            ["kd", "91.23 ± 1.11", "0.2500 ± 0.5000", "90.00", "1.23", "1.00", "12.5", "346", "1.00"],
            ["ce", "91.23", "0.2500", "90.00", "1.23", "-", "12.5", "346", "-"],
        ],
    )


def test_the_brief_table_has_the_primary_metric_and_the_loss_alone():
    many = row(macro_f1_mean=0.5, macro_f1_std=0.1)
    header, rows = table_of(many, brief=True)
    assert header == ACCURACY[:6]
    assert rows == [["kd", "91.23 ± 1.11", "0.2500 ± 0.5000", "90.00", "1.23", "1.00"]]
    header, rows = table_of(many)
    assert header == [*ACCURACY[:3], "macro F1, %", *ACCURACY[3:]]
    assert rows[0][3] == "50.00 ± 10.00"


def auc_row(method, auc, gain, **values):
    return row(
        method,
        auc_mean=auc,
        auc_std=0.00123,
        calibration_mean=0.02,
        calibration_std=0.001,
        val_auc_mean=0.8,
        val_auc_std=0.0,
        relative_improvement=gain,
        **values,
    )


def test_the_table_of_an_auc_task():
    header, rows = table_of(
        auc_row("ce", 0.79, 0.0), auc_row("kd", 0.80204, 0.0123), auc_row("x", 0.4, None), primary="auc"
    )
    assert header == [
        *("method", "AUC", "accuracy, %", "NLL", "calibration error", "held-out", "s", "x kd"),
        *("best epoch", "MiB", "MiB, x kd", "AUC gain over ce, %"),
    ]
    assert rows[1][:6] == ["kd", "0.8020 ± 0.0012", "91.23 ± 1.11", "0.2500 ± 0.5000", "0.0200 ± 0.0010", "0.8000"]
    assert [cells[-1] for cells in rows] == ["+0.00", "+1.23", "-"]


def test_a_recall_has_its_class_in_the_header_and_a_dash_where_it_is_not():
    with_recall = row("kd", **{"recall/u2r_mean": 0.25, "recall/u2r_std": None})
    header, rows = table_of(with_recall, row("ce"))
    place = header.index("recall of u2r, %")
    assert [cells[place] for cells in rows] == ["25.00", "-"]


def test_no_held_out_value_is_shown_for_rows_trained_on_these_samples():
    header, rows = table_of(row("tgeo", trains_on_held_out=True), row("tgeo (outer=holdout)"))
    for column in ("held-out", "best epoch"):
        assert rows[0][header.index(column)] == "-"
        assert rows[1][header.index(column)] != "-"


def test_the_cost_of_tuning_is_shown_where_anything_was_tuned():
    header, rows = table_of(row("kd", tuning_runs=6, tuning_seconds=12.5001), row("ce"))
    assert header == [*ACCURACY, "runs to tune", "s to tune"]
    assert [cells[-2:] for cells in rows] == [["6", "13"], ["0", "0"]]
    assert table_of(row("kd", tuning_runs=6), brief=True)[0] == ACCURACY[:6]


def test_claimed_values_stand_beside_the_rows_they_are_of():
    header, rows = table_of(row("kd"), row("ce"), claimed={"kd": {"value": 0.7333}})
    assert header == [*ACCURACY, "claimed"]
    assert [cells[-1] for cells in rows] == ["73.33", "-"]


def test_a_table_has_the_rows_of_its_setting_alone():
    results = {"summary": [row("kd"), row("ce", setting="noisy")], "primary_metric": "accuracy"}
    assert [cells[0] for cells in comparison_table(results, "noisy")[1]] == ["ce"]


def test_the_summary_of_runs_fits_the_table():
    runs = [
        {
            "setting": "clean",
            "method": method,
            "trains_on_held_out": False,
            "seed": seed,
            "metrics": {"auc": 0.7 + 0.1 * seed, "accuracy": 0.5, "nll": 0.6, "val_auc": 0.6},
            "seconds": 2.0,
            "best_epoch": seed,
            "peak_memory_mb": 100.0,
        }
        for method in ("ce", "kd", "tgeo")
        for seed in (0, 1)
    ]
    header, rows = table_of(*summarise(runs), primary="auc")
    assert all(len(cells) == len(header) for cells in rows)
    assert rows[2][:3] == ["tgeo", "0.7500 ± 0.0707", "50.00 ± 0.00"]
    assert rows[2][header.index("best epoch")] == "1.5"


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("accuracy", (0.5,), "50.00"),
        ("accuracy", (0.98765, 0.00123), "98.77 ± 0.12"),
        ("nll", (0.98765, 0.00123), "0.9877 ± 0.0012"),
        ("auc", (0.98765, None), "0.9877"),
        ("recall/u2r", (0.5, 0.25), "50.00 ± 25.00"),
        ("detection_rate", (0.5, 0.25), "50.00 ± 25.00"),
        ("auc", (None,), "-"),
    ],
)
def test_values_have_the_digits_of_their_metric(metric, values, text):
    assert formatted(metric, *values) == text
    assert title(metric)


# ---- paired differences


def runs_of(**methods):
    for method, values in methods.items():
        for seed, value in enumerate(values):
            yield {"setting": "clean", "method": method, "seed": seed, "metrics": {"accuracy": value}}


def test_paired_differences_by_hand():
    # differences 0.01, 0.03: mean 0.02, sd 0.01 * sqrt(2), error 0.01, t(0.975, 1) = 12.706, p = 2/pi * atan(1/2) = 0.2952
    table = paired_table(runs_of(tgeo=[0.91, 0.93], kd=[0.90, 0.90]), "accuracy")
    header, rows = paired_differences({"paired": table, "primary_metric": "accuracy"}, "clean")
    assert header == ["", "accuracy, %", "95 % interval", "p (Holm)"]
    assert rows == [["tgeo - kd", "2.00", "-10.71 to 14.71", "0.295"]]


def test_one_seed_has_a_difference_but_neither_interval_nor_p():
    table = paired_table(runs_of(tgeo=[0.91], kd=[0.90]), "accuracy")
    _, rows = paired_differences({"paired": table, "primary_metric": "accuracy"}, "clean")
    assert rows == [["tgeo - kd", "1.00", "-", "-"]]


def test_no_differences_without_a_row_to_take_them_from():
    table = paired_table(runs_of(ce=[0.91], kd=[0.90]), "accuracy")
    assert paired_differences({"paired": table, "primary_metric": "accuracy"}, "clean") is None
    both = paired_table(runs_of(tgeo=[0.91], kd=[0.90]), "accuracy")
    assert paired_differences({"paired": both, "primary_metric": "accuracy"}, "another setting") is None
