"""The analyses from end to end on two epochs, each compared with numbers that are computed in another way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from quick import set_options
from torch import nn

from tgeokd.paper import ANALYSES
from tgeokd.paper.base import KD, TGEO, run_analysis
from tgeokd.paper.cost import COSTS
from tgeokd.paper.fig1 import ALPHAS
from tgeokd.paper.fig3 import Fig3
from tgeokd.paper.fig5 import DistanceCallback
from tgeokd.paper.predictions import discrepancy, new_teacher, probs, sample, teacher_probs, trained
from tgeokd.report.analyses import FIGURES, draw_analysis
from tgeokd.runs.build import load_data
from tgeokd.runs.config import override, preset, replace
from tgeokd.runs.results import MethodSpec
from tgeokd.runs.single import run
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.teachers import StoredPredictions


@pytest.fixture(scope="module")
def teacher(noisy, tmp_path_factory):
    """The path of seed 0's teacher and its metrics."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    return path, build_teacher(noisy, load_data(noisy), path)


def found_by(name, config, seeds, out):
    """The data of an analysis, as written; the figure must be drawn from what is written."""
    findings = run_analysis(name, config, seeds, out)
    content = json.loads((out / f"{name}.json").read_text())
    assert set(content) == {"what", "task", "seeds", "data", "differences", "lines", "config", "machine"}
    assert content["data"] == findings.data
    assert content["seeds"] == list(seeds)
    assert set(content["differences"]) == set(findings.differences)
    assert draw_analysis(findings, out).read_bytes()[:4] == b"\x89PNG"
    return content["data"]


def test_every_analysis_has_a_figure():
    assert set(FIGURES) == set(ANALYSES)


# ---- predictions inside a run


def test_distance_is_the_edge_of_the_triangle():
    S = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    T = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    assert discrepancy(S, T).tolist() == pytest.approx([2**0.5, 0.0])


def test_rows_are_drawn_once_each_and_in_order(noisy):
    data = load_data(noisy)
    size = len(data.test)
    assert sample(data, data.test, size, 0)[0] == list(range(size))
    rows, batches = sample(data, data.test, 10, 3)
    assert len(set(rows)) == 10
    assert rows == sorted(rows) == sample(data, data.test, 10, 3)[0] != sample(data, data.test, 10, 4)[0]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), data.test.inputs[rows])


def test_teacher_probabilities_are_the_network_s_and_the_stored_ones(noisy):
    data = load_data(noisy)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    rows, batches = sample(data, data.test, 3, 0)
    expected = network[2](data.test.inputs[rows]).softmax(-1)
    assert teacher_probs(noisy, data, network, batches).numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6)
    stored = StoredPredictions.from_teacher(network.eval(), data.ordered_loader(data.test))
    assert teacher_probs(noisy, data, stored, batches).numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6)


def test_measuring_distances_does_not_change_the_training(noisy):
    data = load_data(noisy)
    teacher = new_teacher(noisy, data)
    _, batches = sample(data, data.test, 50, 0)
    T = teacher_probs(noisy, data, teacher, batches)
    mask = torch.arange(50) < 20
    callback = DistanceCallback({"test": batches}, {"test": T}, {"first": ("test", mask), "others": ("test", ~mask)})
    measured = probs(trained(TGEO.apply(noisy), data, teacher, [callback]), batches)
    alone = probs(trained(TGEO.apply(noisy), data, teacher), batches)
    assert torch.equal(measured, alone)
    distance = ((alone - T) ** 2).sum(-1).sqrt()
    assert callback.curves["first"][-1] == pytest.approx(float(distance[:20].mean()))
    assert callback.curves["others"][-1] == pytest.approx(float(distance[20:].mean()))
    assert len(callback.curves["first"]) == 2


# ---- each analysis


def test_fig1_adds_up_to_the_runs(noisy, teacher, inline, tmp_path):
    path, metrics = teacher
    (seed,) = found_by("fig1", noisy, [0], tmp_path)["seeds"]
    count, correct = np.array(seed["count"]), np.array(seed["correct"])
    assert count.shape == (2, 5)
    assert count.sum() == 997
    assert count[0].sum() / 997 == pytest.approx(metrics["accuracy"])
    assert np.ptp(count, axis=1).max() <= 1
    for alpha in (0.1, 0.9):
        result = run(MethodSpec("kd", {"alpha": alpha}).apply(noisy), path)
        assert correct[ALPHAS.index(alpha)].sum() / 997 == pytest.approx(result.metrics["accuracy"])
    distances = np.array(seed["distance_sum"]) / count
    assert (np.diff(distances, axis=1) >= 0).all()


def test_fig3_and_alpha_over_epochs_are_the_runs_records(noisy, teacher, inline, tmp_path):
    run(Fig3.rows["with"].apply(noisy), teacher[0], tmp_path / "alone")
    last = json.loads((tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()[-1])
    run(TGEO.apply(noisy), teacher[0], tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    alpha = found_by("fig3", noisy, [0], tmp_path / "3")["alpha"]
    assert alpha["with"] == [last["alpha"]]
    assert alpha["without"] != alpha["with"]
    (seed,) = found_by("alpha-over-epochs", noisy, [0], tmp_path / "over")["seeds"]
    assert [epoch["all"] for epoch in seed] == [record["alpha_mean"] for record in records]
    assert seed[1]["groups"]["teacher_wrong_agree"]["count"] == records[1]["alpha"]["teacher_wrong_agree"]["count"]


def test_fig4_has_the_ratios_of_the_run(noisy, teacher, inline, tmp_path):
    run(TGEO.apply(noisy), teacher[0], tmp_path / "run")
    ratios = json.loads((tmp_path / "run" / "ratios.json").read_text())
    alpha, wrong = np.array(ratios["alpha"]), np.array(ratios["corrupted"])
    (groups,) = found_by("fig4", noisy, [0], tmp_path / "fig4")["seeds"]
    clean, corrupted = groups["clean label (training)"], groups["corrupted label (training)"]
    assert (clean["n"], corrupted["n"]) == ((~wrong).sum(), wrong.sum())
    assert clean["mean"] == corrupted["mean_against"] == pytest.approx(alpha[~wrong].mean(), abs=1e-4)
    assert corrupted["mean"] == pytest.approx(alpha[wrong].mean(), abs=1e-4)
    pairs = np.sign(alpha[~wrong][None] - alpha[wrong][:, None])
    assert corrupted["auroc_low"] == pytest.approx((pairs.mean() + 1) / 2, abs=0.01)
    assert groups["normal"]["n"] == groups["Gaussian noise"]["n"] == 997
    assert groups["wrong label, symmetric"]["n"] < 997
    assert sum(groups["normal"]["histogram"]) == 997
    assert groups["Gaussian noise"]["mean"] != groups["normal"]["mean"]


def test_fig5_ends_where_the_run_ends(noisy, teacher, inline, tmp_path):
    (seed,) = found_by("fig5", noisy, [0], tmp_path)["seeds"]
    assert set(seed) == {"kd", "tgeo"}
    data = load_data(noisy)
    network = load_teacher(noisy, data, teacher[0]).eval()
    student = trained(KD.apply(noisy), data, network).student.eval()
    with torch.no_grad():
        S, T = (model(data.train.inputs).softmax(-1) for model in (student, network))
        S2, T2 = (model(data.test.inputs).softmax(-1) for model in (student, network))
    distance = ((S - T) ** 2).sum(-1).sqrt()
    assert seed["kd"]["train, clean label"][-1] == pytest.approx(float(distance[~data.corrupted].mean()), abs=1e-5)
    assert seed["kd"]["train, corrupted label"][-1] == pytest.approx(float(distance[data.corrupted].mean()), abs=1e-5)
    assert seed["kd"]["test, normal"][-1] == pytest.approx(float(((S2 - T2) ** 2).sum(-1).sqrt().mean()), abs=1e-5)
    assert set(map(len, seed["tgeo"].values())) == {2}


@pytest.mark.slow
def test_ablation_and_cost_have_the_values_of_the_comparison(noisy, inline, tmp_path):
    noisy = replace(noisy, options={})  # the rows of cost have their own
    for name in ("ablation", "cost"):
        data = found_by(name, noisy, [1, 0], tmp_path / name)
        results = json.loads((tmp_path / name / "runs" / "results.json").read_text())
        runs = {}
        for record in results["runs"]:
            spec = MethodSpec(record["method"], record["options"], record["train_on"])
            runs[spec, record["seed"]] = record
        for row, entry in ANALYSES[name].rows.items():
            of = [runs[entry, seed] for seed in (1, 0)]
            assert data["values"][row] == [record["metrics"]["accuracy"] for record in of]
            for key in COSTS if name == "cost" else ():
                kd = [runs[KD, seed][key] for seed in (1, 0)]
                assert data["ratios"][row][key] == pytest.approx([a[key] / b for a, b in zip(of, kd, strict=True)])
    assert data["processes"] == 1
    assert set(data["ratios"]) - set(data["learned"]) == {"ce", "kd", "rw"}


@pytest.mark.slow
def test_oversampling_repeats_training_rows_of_teacher_and_student_separately(inline, tmp_path):
    generator = np.random.default_rng(0)
    label = np.repeat(["common", "rare"], [270, 30])
    x = generator.normal(size=300) + (label == "rare")
    rows = "\n".join(f"{a:.4f},{b}" for a, b in zip(x, label, strict=True))
    (tmp_path / "t.csv").write_text(f"x,y\n{rows}\n")
    short_run = ["data.file=t.csv", "data.label=y", "student.epochs=2", "teacher.epochs=2", "teacher.patience=null"]
    config = replace(override(preset("tabular"), short_run), data_dir=str(tmp_path))
    (seed,) = found_by("oversampling", config, [0], tmp_path / "out")["seeds"]
    assert seed["rarest"] == "rare"
    plain, over = seed["training_rows"]["plain"], seed["training_rows"]["oversampled"]
    assert plain[1] < plain[0]
    assert over == [plain[0]] * 2
    assert len(seed["rows"]) == 8
    # one case again, its teacher trained on oversampled rows and its student not
    oversampled = replace(config, data=config.data | {"oversample": True})
    made = build_teacher(oversampled, load_data(oversampled), tmp_path / "again.safetensors")
    assert made == {t["teacher"]: t["metrics"] for t in seed["teachers"]}["oversampled"]
    again = run(KD.apply(config), tmp_path / "again.safetensors")
    case = {"method": "kd", "teacher": "oversampled", "student": "plain"}
    (found,) = (row["metrics"] for row in seed["rows"] if case.items() <= row.items())
    assert found == pytest.approx(again.metrics)


# ---- the command


@pytest.mark.parametrize(("given_noise", "noise"), [([], 0.3), (["data.noise=0.1"], 0.1)])
def test_the_command_prints_the_lines_and_draws_the_figure(given_noise, noise, tgeokd_, tmp_path):
    settings = set_options(*given_noise)
    outcome = tgeokd_("reproduce", "alpha-over-epochs", "--seeds", 1, *settings)
    assert outcome.code == 0
    folder = tmp_path / "runs" / "reproduce-alpha-over-epochs-digits"
    content = json.loads((folder / "alpha-over-epochs.json").read_text())
    assert content["config"]["data"]["noise"] == noise
    assert outcome.out.splitlines()[:3] == content["lines"]
    assert (folder / "alpha-over-epochs.png").is_file()


def test_the_command_refuses_an_unknown_analysis_in_one_line(tgeokd_):
    outcome = tgeokd_("reproduce", "figure1")
    assert outcome.code == 2
    assert "figure1" in outcome.err
    assert outcome.err.count("\n") == 1
