"""Each example of docs/extending.md, installed beside the package, through the command line."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[1] / "examples" / "extending"
GROUPS = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]["entry-points"]
SHORT = ("--set", "teacher.epochs=10", "--set", "student.epochs=1")

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder like that of ``pip install examples/extending``: the files and the entry points of its pyproject.toml."""
    folder = tmp_path_factory.mktemp("site")
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, folder)
    metadata = folder / "my_tgeokd_extension-0.1.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: my-tgeokd-extension\nVersion: 0.1\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in GROUPS.items()]
    metadata.joinpath("entry_points.txt").write_text("\n".join(lines))
    return folder


def environment(folder):
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def distill(installed, tmp_path):
    """Runs ``tgeokd distill`` with the installed examples; returns the folder of the run and its results."""
    folder = tmp_path / "run"

    def run(*arguments: str, code: int = 0, command: str = "distill"):
        done = subprocess.run(
            [sys.executable, "-m", "tgeokd", command, *arguments, "--out", str(folder)],
            env=environment(installed),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stderr
        return folder, json.loads((folder / "results.json").read_text()) if code == 0 else done.stderr

    return run


def test_one_short_file_per_example():
    files = [point.partition(":")[0] for points in GROUPS.values() for point in points.values()]
    assert len(files) == len(GROUPS) == 5
    assert all(len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40 for name in files)


def test_the_page_shows_the_files():
    page = (EXAMPLES.parents[1] / "docs" / "extending.md").read_text()
    files = [path.read_text() for path in EXAMPLES.iterdir()]
    for block in re.findall(r"```(?:python|toml)\n(.*?)```", page, re.DOTALL):
        if "METRICS.register" not in block:
            assert any(block in text for text in files), block


def test_explicit_registration(installed):
    page = (EXAMPLES.parents[1] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(from my_metric.*?)```", page, re.DOTALL)
    code += "import torch\nprint(metrics(torch.tensor([[100.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))['brier'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(installed), capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(0.25), done.stderr


def test_method(distill):
    folder, results = distill("digits", "--method", "my_method", "--set", "options.scale=0.5", *SHORT)
    assert results["run"]["method"] == "my_method"
    assert results["run"]["epochs"] == 1
    alpha = json.loads((folder / "ratios.json").read_text())["alpha"]
    assert 0.01 < max(alpha) <= 0.5
    assert len(set(alpha)) > 50


def test_task(distill):
    _, results = distill("my_task", "--config", str(EXAMPLES / "my_task.yaml"), "--method", "kd", *SHORT)
    assert results["task"] == "my_task"
    assert results["class_names"] == ["malignant", "benign"]
    assert 0.5 < results["run"]["metrics"]["auc"] <= 1


def test_a_task_without_presets_is_compared_by_its_config(distill):
    config = ("my_task", "--config", str(EXAMPLES / "my_task.yaml"), *SHORT)
    _, results = distill(*config, "--methods", "ce,kd", "--seeds", "1", command="compare")
    assert [run["method"] for run in results["runs"]] == ["ce", "kd"]


def test_a_task_without_presets_needs_a_config(distill):
    _, error = distill("my_task", code=2)
    assert "'my_task'" in error
    assert "--config" in error


def test_model(distill):
    options = "{name: my_model, width: 24, blocks: 3}"
    folder, results = distill("digits", "--method", "kd", "--set", f"student.model={options}", *SHORT)
    shapes = [tuple(value.shape) for value in load_file(folder / "student.safetensors").values()]
    assert shapes.count((24, 24)) == 3
    assert (10, 24) in shapes
    assert results["run"]["metrics"]["accuracy"] > 0.1


def test_metric(distill):
    _, results = distill("digits", "--method", "ce", "--set", "metrics=[my_metric]", *SHORT)
    metrics = results["run"]["metrics"]
    assert {"accuracy", "nll", "my_metric", "val_my_metric"} <= set(metrics)
    assert 0 < metrics["my_metric"] < 1
    assert math.isfinite(metrics["val_my_metric"])


def test_estimator(distill):
    _, results = distill("digits", "--method", "tgeo", "--set", "options.hypergradient=my_estimator", *SHORT)
    assert results["run"]["method"] == "tgeo"
    assert results["run"]["options"]["hypergradient"] == "my_estimator"
    assert results["run"]["metrics"]["accuracy"] > 0.1
