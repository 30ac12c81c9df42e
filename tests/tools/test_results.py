"""The page of results is generated from the files in results/, and every command on it can be run."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from quick import SHORT, InlinePool

from tgeokd.runs.compare import compare
from tgeokd.runs.config import RunConfig, override, preset
from tgeokd.runs.plan import parse_method
from tgeokd.runs.results import ComparisonResults, MethodSpec
from tgeokd.utils.validation import validate_config

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "results").glob("*.json"))
spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools" / "results.py")
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "results.md").read_text() == tool.page(), "run `make results`"


def test_there_are_results():
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_results_is_complete_and_names_no_place(file):
    content = json.loads(file.read_text())
    results = ComparisonResults.from_dict(content["results"], file.name)
    seeds = content["description"]["seeds"]
    by_row: dict[MethodSpec, list[int]] = {}
    for run in results.runs:
        by_row.setdefault(run.spec, []).append(run.seed)
    assert all(sorted(found) == seeds for found in by_row.values())
    assert {"ce", "kd"} <= {row.method for row in by_row if row.train_on == "train+val"}  # the controls
    assert list(by_row) == [MethodSpec(**row) for row in content["description"]["rows"]]
    assert content["description"]["config"]["data_dir"] is None
    assert "/" not in content["command"].replace("DATA", "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_asks_for_what_was_run(file):
    content = json.loads(file.read_text())
    description = content["description"]
    for command in (content["command"], tool.command_of(description)):
        words = shlex.split(command)
        rows = words[words.index("--methods") + 1].split(",")
        assert [parse_method(row) for row in rows] == [MethodSpec(**row) for row in description["rows"]]
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = override(preset(words[2], words[words.index("--preset") + 1]), settings)
    # a setting that is newer than the file has its default
    assert config == validate_config(RunConfig, description["config"])


def test_a_comparison_is_filed_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "RESULTS", tmp_path / "results")
    config = override(preset("digits"), [*SHORT, "data.noise=0.3", "data.train=100"])
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    compare(config, [parse_method("kd"), parse_method("tgeo:outer=union")], [0, 1], tmp_path / "out", jobs=1)
    tool.add(tmp_path / "out", "digits")
    content = json.loads((tmp_path / "results" / "digits.json").read_text())
    words = shlex.split(content["command"])
    assert words[:3] == ["tgeokd", "compare", "digits"]
    assert words[words.index("--methods") + 1] == "kd,tgeo:outer=union"
    assert {"data.noise=0.3", "data.train=100", "student.epochs=2"} <= set(words)
    (tmp_path / "results" / "digits.md").write_text("Because.\n")
    page = tool.page()
    assert "tgeo (outer=union)" in page
    assert page.rstrip().endswith("Because.")
