"""Tables of comparisons, cell by cell."""

from __future__ import annotations

import pytest

from tgeokd.report.tables import comparison_table, paired_differences
from tgeokd.runs.plan import parse_method
from tgeokd.runs.results import Claim, ComparisonResults, RowSummary, RunRecord, Spread
from tgeokd.runs.statistics import paired_table, summarise


def row(text="kd", metrics=None, **values):
    """A summary's row by hand, from ``METHOD[:key=value]``; metrics are pairs of mean and standard deviation."""
    spec = parse_method(text)
    own = {"accuracy": (0.91234, 0.01111), "nll": (0.25, 0.5), "val_accuracy": (0.9, 0.1), "val_nll": (0.3, 0.1)}
    fields = {
        **{"variant": "clean", "method": spec.method, "options": spec.options, "train_on": spec.train_on, "runs": 2},
        "metrics": {name: Spread(*pair) for name, pair in (own | (metrics or {})).items()},
        "seconds": Spread(1.234, None),
        "peak_memory_mb": Spread(345.6, None),
        "best_epoch": 11.5,
        "trains_on_validation": False,
        "seconds_vs_kd": 1.0,
        "memory_vs_kd": 1.0,
    }
    return RowSummary(**fields | values)


def results_of(*summary, primary="accuracy", runs=(), **values):
    fields = {"task": "digits", "primary_metric": primary, "chosen_by": primary, "wall_seconds": 1.0, "machine": {}}
    pairs = paired_table(list(runs), primary) if runs else []
    return ComparisonResults(**fields, runs=list(runs), summary=list(summary), pairs=pairs, teachers=[], **values)


def table_of(*summary, brief=False, **values):
    return comparison_table(results_of(*summary, **values), "clean", brief=brief)


ACCURACY = ["method", "accuracy, %", "NLL", "validation", "s", "x kd", "best epoch", "MiB", "MiB, x kd"]


def test_the_table_of_an_accuracy_task():
    one_seed = {"accuracy": (0.91234, None), "nll": (0.25, None)}
    assert table_of(row(), row("ce", one_seed, seconds_vs_kd=None, memory_vs_kd=None)) == (
        ACCURACY,
        [
            ["kd", "91.23 ± 1.11", "0.2500 ± 0.5000", "90.00", "1.23", "1.00", "12.5", "346", "1.00"],
            ["ce", "91.23", "0.2500", "90.00", "1.23", "-", "12.5", "346", "-"],
        ],
    )


def test_the_brief_table_has_the_primary_metric_and_the_loss_alone():
    many = row(metrics={"macro_f1": (0.5, 0.1)})
    header, rows = table_of(many, brief=True)
    assert header == ACCURACY[:6]
    assert rows == [["kd", "91.23 ± 1.11", "0.2500 ± 0.5000", "90.00", "1.23", "1.00"]]
    header, rows = table_of(many)
    assert header == [*ACCURACY[:3], "macro F1, %", *ACCURACY[3:]]
    assert rows[0][3] == "50.00 ± 10.00"


def test_the_table_of_an_auc_task():
    def auc_row(method, auc, gain):
        metrics = {"auc": (auc, 0.00123), "calibration": (0.02, 0.001), "val_auc": (0.8, 0.0)}
        return row(method, metrics, relative_improvement=gain)

    summary = auc_row("ce", 0.79, 0.0), auc_row("kd", 0.80204, 0.0123), auc_row("ada", 0.4, None)
    header, rows = table_of(*summary, primary="auc")
    assert header == [
        *("method", "AUC", "accuracy, %", "NLL", "calibration error", "validation", "s", "x kd"),
        *("best epoch", "MiB", "MiB, x kd", "AUC gain over ce, %"),
    ]
    assert rows[1][:6] == ["kd", "0.8020 ± 0.0012", "91.23 ± 1.11", "0.2500 ± 0.5000", "0.0200 ± 0.0010", "0.8000"]
    assert [cells[-1] for cells in rows] == ["+0.00", "+1.23", "-"]


def test_a_recall_has_its_class_in_the_header_and_a_dash_where_it_is_missing():
    header, rows = table_of(row("kd", {"recall/u2r": (0.25, None)}), row("ce"))
    (place,) = (i for i, name in enumerate(header) if "u2r" in name)
    assert [cells[place] for cells in rows] == ["25.00", "-"]


def test_no_validation_value_is_shown_for_rows_trained_on_these_samples():
    header, rows = table_of(row("tgeo", trains_on_validation=True), row("tgeo:outer=holdout"))
    for column in ("validation", "best epoch"):
        assert rows[0][header.index(column)] == "-"
        assert rows[1][header.index(column)] != "-"


def test_the_cost_of_tuning_is_shown_where_anything_was_tuned():
    header, rows = table_of(row("kd", tuning_runs=6, tuning_seconds=12.5001), row("ce"))
    assert header == [*ACCURACY, "runs to tune", "s to tune"]
    assert [cells[-2:] for cells in rows] == [["6", "13"], ["0", "0"]]
    assert table_of(row("kd", tuning_runs=6), brief=True)[0] == ACCURACY[:6]


def test_published_values_are_shown_beside_their_rows():
    claim = Claim(row=parse_method("kd:alpha=0.5"), value=0.7333, source="", protocol="")
    header, rows = table_of(row("kd:alpha=0.5"), row("kd"), claims=[claim])
    assert header == [*ACCURACY, "published"]
    assert [cells[-1] for cells in rows] == ["73.33", "-"]


def test_a_table_has_the_rows_of_its_variant_alone():
    results = results_of(row("kd"), row("ce", variant="noisy"))
    assert [cells[0] for cells in comparison_table(results, "noisy").rows] == ["ce"]


def run_of(text, seed, **metrics):
    spec = parse_method(text)
    fields = {"variant": "clean", "method": spec.method, "options": spec.options, "train_on": spec.train_on}
    cost = {"seconds": 2.0, "epochs": 3, "best_epoch": seed + 1, "peak_memory_mb": 100.0, "trains_on_validation": False}
    return RunRecord(**fields, **cost, seed=seed, metrics=metrics)


def test_the_summary_of_runs_fits_the_table():
    runs = [
        run_of(method, seed, auc=0.7 + 0.1 * seed, accuracy=0.5, nll=0.6, val_auc=0.6)
        for method in ("ce", "kd", "tgeo")
        for seed in (0, 1)
    ]
    header, rows = table_of(*summarise(runs), primary="auc")
    assert all(len(cells) == len(header) for cells in rows)
    assert rows[2][:3] == ["tgeo", "0.7500 ± 0.0707", "50.00 ± 0.00"]
    assert rows[2][header.index("best epoch")] == "2.5"


# ---- paired differences


def accuracies(**methods):
    runs = [run_of(name, seed, accuracy=value) for name, values in methods.items() for seed, value in enumerate(values)]
    return results_of(runs=runs).pairs


def test_paired_differences_by_hand():
    # differences 0.01, 0.03: mean 0.02, sd 0.01 * sqrt(2), error 0.01, t(0.975, 1) = 12.706, p = 2/pi * atan(1/2) = 0.2952
    header, rows = paired_differences(accuracies(tgeo=[0.91, 0.93], kd=[0.90, 0.90]), "clean")
    assert header[1] == "accuracy, %"
    assert rows == [["tgeo - kd", "2.00", "-10.71 to 14.71", "0.295"]]


def test_one_seed_has_a_difference_without_interval_and_p():
    _, rows = paired_differences(accuracies(tgeo=[0.91], kd=[0.90]), "clean")
    assert rows == [["tgeo - kd", "1.00", "-", "-"]]


@pytest.mark.parametrize(("methods", "variant"), [(("ce", "kd"), "clean"), (("tgeo", "kd"), "another variant")])
def test_without_pairs_there_is_no_table(methods, variant):
    assert paired_differences(accuracies(**{name: [0.9] for name in methods}), variant) is None
