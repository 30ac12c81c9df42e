"""The smallest unit of every benchmark runs, and what it compares is the same."""

from __future__ import annotations

import dataclasses
import sys

import bench
import cached_epoch
import criteo_memory
import grid
import last_layer
import last_layer_resnet
import loader
import memory
import peers
import pytest
import scale
import startup
import steps
import torch
import where_time_goes
from harness import Figure, interleaved, ratios
from quick import short
from workloads import METHODS, MLP

from tgeokd.bilevel import ratio_gradient
from tgeokd.runs.config import override
from tgeokd.runs.executors import machine

TINY = dataclasses.replace(MLP, steps=4, batch_size=16)


def test_interleaved_measures_alternate():
    calls = []
    measures = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    values = interleaved(measures, 2)
    assert "".join(calls) == "ababab"
    assert ratios(values, "b", "a") == [4 / 3, 6 / 5]
    figure = Figure.of("x", [3.0, 1.0, 2.0], limit=1.5)
    assert (figure.value, figure.low, figure.high, figure.runs, figure.met) == (2.0, 1.0, 3.0, 3, False)


def test_steps():
    found = steps.of_workload(TINY, 1, computed=1.06, cached=1.12, exact=2.8)
    assert all(figure.value > 0 for figure in found)


@pytest.mark.parametrize("name", METHODS)
def test_where_time_goes(name):
    found = where_time_goes.measured(TINY, name)
    total = found.pop("total")
    assert all(value >= 0 for value in found.values())
    assert sum(found.values()) <= total
    for component in ("teacher", "student forward", "backward", "optimizer step", "ratios and loss"):
        assert found[component] > 0
    assert (found["hypergradient"] > 0) == (name != "kd")


def test_where_time_goes_prints_a_table(capsys):
    where_time_goes.table(TINY)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[0] == "total"
    assert all(len(line.split()) >= 1 + len(METHODS) for line in lines[3:])


def test_peers_compute_the_hypergradient():
    problem = peers.Problem(TINY)
    alpha = problem.alpha().detach()
    expected = ratio_gradient(
        problem.student,
        torch.optim.SGD(problem.student.parameters(), peers.LR),
        inputs=problem.inputs,
        target=problem.target,
        teacher_logits=problem.teacher_logits,
        alpha=alpha,
        val_inputs=problem.val_inputs,
        val_target=problem.val_target,
        temperature=problem.temperature,
        method="unrolled",
    )
    once = peers.ours(problem)
    for _ in range(2):
        problem.reset()
        torch.testing.assert_close(once(), expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("peer", ["torchopt", "higher"])
def test_peers_agree(peer):
    pytest.importorskip(peer)
    assert peers.check_agreement(TINY)


@pytest.mark.slow
def test_last_layer(monkeypatch, capsys):
    settings = ["student.epochs=1", "teacher.epochs=1", "teacher.patience=null"]
    monkeypatch.setattr(sys, "argv", ["last_layer.py", "--seeds", "2", "--set", *settings])
    last_layer.main()
    assert capsys.readouterr().out.count("same sign") == 2


def test_last_layer_of_another_method():
    found = last_layer_resnet.measured(short("student.epochs=1", "teacher.epochs=1"))
    assert found.steps > 0
    assert len(found.correlations) == len(found.same_sign) == 1 + (found.steps - 1) // 25
    assert all(-1 <= value <= 1 for value in found.correlations)
    assert all(0 <= value <= 1 for value in found.same_sign)


@pytest.mark.slow
def test_cached_epoch(monkeypatch):
    monkeypatch.setattr(cached_epoch, "SAMPLES", 16)
    monkeypatch.setattr(cached_epoch, "BATCH", 8)
    monkeypatch.setattr(cached_epoch, "STUDENT", "resnet8")
    monkeypatch.setattr(cached_epoch, "TEACHERS", ("resnet8",))
    (found,) = cached_epoch.figures(1)
    assert found.value > 0


def test_grid():
    config = override(short("student.epochs=1", "teacher.epochs=1"), ["data.noise=0.3"])
    ratio, margin = grid.of_task("digits", config, 1)
    assert ratio.value > 0
    assert -100 < margin.value < 100


def test_loader(monkeypatch):
    monkeypatch.setattr(loader, "SAMPLES", 100)
    monkeypatch.setattr(loader, "ROWS", 100)
    monkeypatch.setattr(loader, "MLP", TINY)
    assert all(figure.value > 0 for figure in loader.figures(1))


@pytest.mark.parametrize("method", ["tgeo", "tgeokd"])
def test_memory(method, monkeypatch):
    monkeypatch.setattr(memory, "RESNET", TINY)
    assert memory.measure(method) == pytest.approx(0, abs=500)


def test_scale(monkeypatch):
    monkeypatch.setattr(scale, "CALLS", 4)
    encoding = scale.Encoding(10)
    assert scale.overhead(encoding) > 0
    assert scale.share(encoding) > 0


def test_scale_memory():
    assert scale.measure(scale.BATCH) < 2000


@pytest.mark.process
def test_startup():
    assert startup.measure("-c", "pass") > 0


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_criteo_memory(tmp_path):
    found = criteo_memory.measure(3000, tmp_path)
    assert found["rows"] == 3000
    assert found["codes"] > 0


def test_bench_runs_the_chosen_parts(monkeypatch, capsys):
    figures = [Figure.of("good", [1.0], limit=2.0), Figure.of("bad", [3.0], limit=2.0, note="why")]
    monkeypatch.setattr(bench, "parts", lambda *_: {"one": lambda: figures, "other": lambda: 1 / 0})
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "one"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == "missed: bad"
    assert "why" in capsys.readouterr().out
    page = bench.markdown(machine(), figures)
    assert "| bad | 3 | 3 to 3 | 2 **missed** | 1 |" in page
    assert f"torch {torch.__version__.partition('+')[0]}" in page


def test_bench_has_all_parts():
    names = {"startup", "steps", "peers", "memory", "cached_epoch", "scale", "loader", "grid"}
    assert set(bench.parts(1, None)) == names
