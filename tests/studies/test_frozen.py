"""The final comparison: intervals against scipy, tables, and runs that continue where they stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from frozen import run_group
from frozen_rows import ROWS, SETS
from frozen_tables import difference, tables
from scipy import stats

from tgeokd.methods import METHODS, build_method
from tgeokd.runs.config import override, preset


def test_intervals_are_those_of_a_paired_t_test():
    ours, theirs = {0: 1.0, 1: 3.0, 2: 2.5, 5: 9.0}, {0: 0.5, 1: 1.0, 2: 2.0, 7: 1.0}
    mean, low, high = difference(ours, theirs)
    test = stats.ttest_rel([1.0, 3.0, 2.5], [0.5, 1.0, 2.0])
    expected = test.confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((1.0, expected.low, expected.high))
    assert difference({0: 1.0}, {0: 2.0}) is None


def test_every_row_and_every_set_can_be_built():
    for row in ROWS.values():
        if row.method != "known":
            assert row.method in METHODS
            options = row.options | ({"alpha": row.search[0]} if row.search else {})
            assert (build_method(row.method, **options).outer is None) == (
                row.method not in ("tgeo", "posterior", "mwnet")
            )
    for entry in SETS.values():
        config = override(preset(entry.task, entry.preset), entry.settings)
        assert config.task == entry.task


def test_runs_continue_and_make_a_table(tmp_path):
    rows = ["ce", "kd tuned", "posterior", "tgeo, nothing learned", "tgeo", "known wrong"]
    run_group("digits-noise", 0, rows[:2], tmp_path, None)
    first = {path.name: path.read_text() for path in (tmp_path / "digits-noise").iterdir()}
    run_group("digits-noise", 0, rows, tmp_path, None)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "digits-noise").glob("*.json"))]
    assert sorted(record["row"] for record in records) == sorted(rows)
    assert all((tmp_path / "digits-noise" / name).read_text() == text for name, text in first.items())
    by_row = {record["row"]: record for record in records}
    assert by_row["kd tuned"]["searched"] in ROWS["kd tuned"].search
    assert by_row["tgeo"]["auc"] > 0.9
    assert not by_row["tgeo"]["saturated"]
    assert by_row["tgeo"]["metrics"]["accuracy"] != by_row["tgeo, nothing learned"]["metrics"]["accuracy"]
    page = tables(records)
    line = next(line for line in page.splitlines() if line.startswith("| ce |"))
    assert f"{100 * by_row['ce']['metrics']['accuracy']:.2f}" in line
    assert np.isfinite(by_row["tgeo"]["teacher"])
