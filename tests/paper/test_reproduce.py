"""The analyses from end to end on two epochs, each against numbers that come another way."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick import InlinePool, contents, set_options, short
from torch import nn

from tgeokd.cli import main as cli
from tgeokd.data import InputSpec, TaskData
from tgeokd.data.loaders import ArrayDataset
from tgeokd.data.tasks.cifar import CIFAR100
from tgeokd.paper import ANALYSES, base, default_task, fig5, run_analysis, usual_settings
from tgeokd.paper.fig1 import ALPHAS, quantile_groups
from tgeokd.paper.fig4 import groups_of_the_test_set
from tgeokd.paper.outliers import (
    below,
    feature_sd,
    human_counts,
    noisy_inputs,
    relabellers,
    wrong_labels,
)
from tgeokd.paper.rows import primary_of
from tgeokd.paper.training import (
    discrepancy,
    drawn,
    new_teacher,
    probs,
    some_batches,
    teacher_probs,
    trained,
)
from tgeokd.runs import compare as compare_module
from tgeokd.runs.build import load_data
from tgeokd.runs.config import override, preset
from tgeokd.runs.plan import MethodSpec
from tgeokd.runs.single import run
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.teachers import StoredPredictions
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace

PNG = b"\x89PNG"


@pytest.fixture
def inline(monkeypatch):
    """Jobs are done in this process."""
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)


@pytest.fixture(scope="module")
def noisy():
    """Two epochs of everything, 30 % of the training labels replaced; the ratio learns in every step, or it would not move."""
    return short("data.noise=0.3", "student.batch_size=200", "teacher.batch_size=200", "options.every=1")


@pytest.fixture(scope="module")
def teacher(noisy, tmp_path_factory):
    """The path of seed 0's teacher and its metrics."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    return path, build_teacher(noisy, load_data(noisy), path)


def written(out, what):
    content = json.loads((out / f"{what}.json").read_text())
    assert (out / f"{what}.png").read_bytes()[:4] == PNG
    assert len(content["lines"]) == 3
    assert set(content) == {"what", "task", "seeds", "lines", "data", "config"}
    return content


# ---- groups and areas


def test_quantile_groups_of_a_worked_example():
    values = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.2])
    assert quantile_groups(values, 3).tolist() == [2, 0, 1, 1, 2, 0, 0]  # ranks 6 0 4 3 5 1 2, times 3 over 7


@given(st.lists(st.floats(0, 2), max_size=40), st.integers(1, 7))
def test_quantile_groups_are_ordered_and_of_equal_size(values, groups):
    found = quantile_groups(torch.tensor(values, dtype=torch.float64), groups)
    sizes = found.bincount(minlength=groups)
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == groups
    by_value = sorted(zip(values, found.tolist(), strict=True))
    assert [g for _, g in by_value] == sorted(found.tolist())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_area_is_the_share_of_pairs(outlier, normal):
    won = sum((o < n) + 0.5 * (o == n) for o in outlier for n in normal)
    assert below(torch.tensor(outlier), torch.tensor(normal)) == pytest.approx(won / (len(outlier) * len(normal)))


def test_distance_is_the_edge_of_the_triangle():
    S = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    T = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    assert discrepancy(S, T).tolist() == pytest.approx([2**0.5, 0.0])


def test_rows_are_drawn_once_each_and_in_order():
    assert drawn(5, 5, 0) == [0, 1, 2, 3, 4]
    rows = drawn(100, 10, 3)
    assert len(set(rows)) == 10
    assert rows == sorted(rows) == drawn(100, 10, 3) != drawn(100, 10, 4)


# ---- outliers


def table_batches():
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(4000, 2, generator=generator) * torch.tensor([2.0, 0.0]) + 5
    codes = torch.arange(4000)[:, None]
    target = torch.arange(4000) % 3
    return [((numeric[rows], codes[rows]), target[rows], rows) for rows in torch.arange(4000).split(1500)]


def test_deviation_is_numpy_s_by_feature_and_by_channel():
    images = torch.rand(7, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    sd = feature_sd([(images[:4], torch.zeros(4)), (images[4:], torch.zeros(3))])
    assert sd.shape == (3, 1, 1)
    assert sd.flatten().numpy() == pytest.approx(images.numpy().std(axis=(0, 2, 3)), rel=1e-5)
    vectors = images.flatten(1)
    assert feature_sd([(vectors, None)]).numpy() == pytest.approx(vectors.numpy().std(axis=0), rel=1e-5)
    sd = feature_sd(table_batches())
    assert sd.dtype == torch.float32
    assert sd.tolist() == pytest.approx([2.0, 0.0], abs=0.1)


def test_noise_is_added_to_numbers_alone():
    batches = table_batches()
    changed = noisy_inputs(batches, torch.tensor([2.0, 0.0]), seed=1)
    again = noisy_inputs(batches, torch.tensor([2.0, 0.0]), seed=1)
    for (old, *rest), (new, *same), (other, *_) in zip(batches, changed, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rest, same, strict=True))
        assert torch.equal(old[1], new[1])  # codes
        assert torch.equal(old[0][:, 1], new[0][:, 1])  # a column without spread gets no noise
        assert torch.equal(new[0], other[0])
    added = torch.cat([new[0][0][:, 0] - old[0][0][:, 0] for old, new in zip(batches, changed, strict=True)])
    assert float(added.std()) == pytest.approx(2.0, rel=0.05)
    assert float(added.mean()) == pytest.approx(0.0, abs=0.1)


def test_wrong_labels_are_wrong_and_the_rest_stays(noisy):
    batches = table_batches()
    data = TaskData(*[ArrayDataset(torch.zeros(1, 1), torch.zeros(1))] * 3, 3, InputSpec("table", (2,), (4000,)))
    kinds = relabellers(noisy, data)
    assert set(kinds) == {"symmetric"}
    relabelled, wrong = wrong_labels(batches, kinds["symmetric"])
    old, new = (torch.cat([batch[1] for batch in parts]) for parts in (batches, relabelled))
    assert torch.equal(wrong, old != new)
    assert float(wrong.double().mean()) == pytest.approx(2 / 3, abs=0.05)  # drawn from all three classes
    assert all(a[0] is b[0] and a[2] is b[2] for a, b in zip(batches, relabelled, strict=True))


def test_confusions_of_people_are_found_beside_the_data(tmp_path):
    config = replace(preset("cifar100"), data={"labels": "fine"}, data_dir=str(tmp_path))
    data = TaskData(*[ArrayDataset(torch.zeros(1, 1), torch.zeros(1))] * 3, 100, InputSpec("array", (3, 32, 32)))
    assert human_counts(config, data) is None
    counts = np.roll(np.eye(100, dtype=int), 1, axis=1)  # everybody calls a class the next one
    (tmp_path / "cifar-n").mkdir()
    np.savetxt(tmp_path / "cifar-n" / CIFAR100.counts_file, counts, fmt="%d", delimiter=",")
    assert human_counts(config, data).tolist() == counts.tolist()
    assert human_counts(replace(config, task="digits"), data) is None
    relabelled, wrong = wrong_labels([(None, torch.tensor([3, 99]))], relabellers(config, data)["human"])
    assert relabelled[0][1].tolist() == [4, 0]
    assert wrong.all()


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({"normal": [1, 1, 0, 0], "unseen": [0, 0, 0, 1]}, {"unseen": (0.9, 0.15, "test group, normal")}),
        ({"seen": [0, 0, 1, 0], "all": [1, 1, 1, 1], "none": [0] * 4}, {"seen": (0.5, 0.4, "other test samples")}),
    ],
)
def test_groups_of_the_test_set_are_compared_with_its_normal_samples(masks, expected):
    # rows 9, 1, 2, 3 of the test set; the others are not looked at
    alpha, rows = torch.tensor([0.1, 0.2, 0.5, 0.9]), [9, 1, 2, 3]
    groups = {name: torch.zeros(10, dtype=torch.bool) for name in masks}
    for name, mask in masks.items():
        groups[name][rows] = torch.tensor(mask, dtype=torch.bool)
    found = groups_of_the_test_set(groups, rows, alpha)
    compared = {name: group for name, group in found.items() if group["against"] is not None}
    assert set(compared) == {f"test group, {name}" for name in expected}
    for name, (own, other, against) in expected.items():
        group = compared[f"test group, {name}"]
        assert (group["n"], group["against"]) == (1, against)
        assert (group["mean"], group["mean_against"]) == pytest.approx((own, other))


# ---- looking inside a run


def test_teacher_probabilities_are_the_network_s_and_the_stored_ones(noisy):
    data = load_data(noisy)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    batches = some_batches(data, data.test, [0, 5, 7])
    expected = network[2](data.test.inputs[[0, 5, 7]]).softmax(-1)
    assert teacher_probs(noisy, data, network, batches).numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6)
    stored = StoredPredictions.from_teacher(network.eval(), data.ordered_loader(data.test))
    assert teacher_probs(noisy, data, stored, batches).numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6)


def test_watching_leaves_the_training_as_it_is(noisy):
    data = load_data(noisy)
    teacher = new_teacher(noisy, data)
    batches = some_batches(data, data.test, list(range(50)))
    config = MethodSpec("tgeo").apply(noisy)
    T = teacher_probs(noisy, data, teacher, batches)
    mask = torch.arange(50) < 20
    watch = fig5.Watch({"test": batches}, {"test": T}, {"first": ("test", mask), "others": ("test", ~mask)})
    watched = probs(trained(config, data, teacher, [watch]), batches)
    alone = probs(trained(config, data, teacher), batches)
    assert torch.equal(watched, alone)
    distance = ((alone - T) ** 2).sum(-1).sqrt()
    assert watch.curves["first"][-1] == pytest.approx(float(distance[:20].mean()))
    assert watch.curves["others"][-1] == pytest.approx(float(distance[20:].mean()))
    assert len(watch.curves["first"]) == 2


# ---- keeping what is done


def test_a_job_is_done_once(noisy, tmp_path):
    path, calls = tmp_path / "deep" / "seed.json", []

    def compute(config):
        calls.append(config)
        return {"value": [1.5, None]}

    assert base.kept(path, noisy, compute) == base.kept(path, noisy, compute) == {"value": [1.5, None]}
    assert calls == [noisy]
    with pytest.raises(InputError, match="made with other settings"):
        base.kept(path, replace(noisy, temperature=3.0), compute)


def test_processes_give_results_in_the_order_of_the_arguments():
    assert base.in_processes(divmod, [(9, 4), (7, 7), (1, 3)], jobs=2) == [(2, 1), (1, 0), (0, 1)]


def test_an_error_in_a_process_is_the_user_s(noisy, tmp_path, inline):
    def refuse(config, path):
        raise InputError(f"seed {config.seed}")

    with pytest.raises(InputError, match="seed 4"):
        base.over_seeds(refuse, noisy, [4, 5], tmp_path, 1)


# ---- each analysis


def test_fig1_adds_up_to_the_runs(noisy, teacher, inline, tmp_path):
    path, metrics = teacher
    run_analysis("fig1", noisy, [0], tmp_path)
    (seed,) = written(tmp_path, "fig1")["data"]["seeds"]
    count, correct = np.array(seed["count"]), np.array(seed["correct"])
    assert count.shape == (2, 5)
    assert count.sum() == 997
    assert count[0].sum() / 997 == pytest.approx(metrics["accuracy"])
    assert np.ptp(count, axis=1).max() <= 1
    for alpha in (0.1, 0.9):
        result = run(MethodSpec("kd", {"alpha": alpha}).apply(noisy), path)
        assert correct[ALPHAS.index(alpha)].sum() / 997 == pytest.approx(result.metrics["accuracy"])
    means = np.array(seed["distance_sum"]) / count
    assert (np.diff(means, axis=1) >= 0).all()


def test_fig3_and_alpha_over_epochs_are_the_runs_records(noisy, teacher, inline, tmp_path):
    run(MethodSpec("tgeo").apply(noisy), teacher[0], tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    run_analysis("fig3", noisy, [0], tmp_path / "3")
    content = written(tmp_path / "3", "fig3")["data"]
    assert content["alpha"]["with"] == [records[-1]["alpha"]]
    assert content["alpha"]["without"] != content["alpha"]["with"]
    run_analysis("alpha-over-epochs", noisy, [0], tmp_path / "over")
    (seed,) = written(tmp_path / "over", "alpha-over-epochs")["data"]["seeds"]
    assert [epoch["all"] for epoch in seed] == [record["alpha_mean"] for record in records]
    assert seed[1]["groups"]["teacher_wrong_agree"]["count"] == records[1]["alpha"]["teacher_wrong_agree"]["count"]


def test_fig4_has_the_ratios_of_the_run(noisy, teacher, inline, tmp_path):
    run(MethodSpec("tgeo").apply(noisy), teacher[0], tmp_path / "run")
    ratios = json.loads((tmp_path / "run" / "ratios.json").read_text())
    alpha, wrong = np.array(ratios["alpha"]), np.array(ratios["corrupted"])
    run_analysis("fig4", noisy, [0], tmp_path / "fig4")
    (groups,) = written(tmp_path / "fig4", "fig4")["data"]["seeds"]
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
    run_analysis("fig5", noisy, [0], tmp_path)
    (seed,) = written(tmp_path, "fig5")["data"]["seeds"]
    assert set(seed) == {"kd", "tgeo"}
    data = load_data(noisy)
    network = load_teacher(noisy, data, teacher[0]).eval()
    student = trained(MethodSpec("kd", {"alpha": 0.5}).apply(noisy), data, network).student.eval()
    with torch.no_grad():
        S, T = (model(data.train.inputs).softmax(-1) for model in (student, network))
        S2, T2 = (model(data.test.inputs).softmax(-1) for model in (student, network))
    distance = ((S - T) ** 2).sum(-1).sqrt()
    assert seed["kd"]["train, clean label"][-1] == pytest.approx(float(distance[~data.corrupted].mean()), abs=1e-5)
    assert seed["kd"]["train, corrupted label"][-1] == pytest.approx(float(distance[data.corrupted].mean()), abs=1e-5)
    assert seed["kd"]["test, normal"][-1] == pytest.approx(float(((S2 - T2) ** 2).sum(-1).sqrt().mean()), abs=1e-5)
    assert set(map(len, seed["tgeo"].values())) == {2}


def test_ablation_and_cost_keep_a_value_for_each_row_and_seed(noisy, inline, tmp_path):
    for what in ("ablation", "cost"):
        run_analysis(what, noisy, [0, 1], tmp_path / what)
        data = written(tmp_path / what, what)["data"]
        assert len(data["runs"]) == 2 * len(data["rows"])
        assert all(set(primary_of(data, label)) == {0, 1} for label in data["rows"].values())
    seconds = {(r["method"], r["seed"]): r["seconds"] for r in data["runs"]}
    own, kd = (seconds[data["rows"][name], 1] for name in ("tgeo, every 4th step", "kd"))
    assert data["ratios"]["tgeo, every 4th step"]["seconds"][1] == pytest.approx(own / kd)
    assert data["processes"] == 1


def test_oversampling_repeats_training_rows_of_teacher_and_student_apart(inline, tmp_path):
    generator = np.random.default_rng(0)
    label = np.repeat(["common", "rare"], [270, 30])
    x = generator.normal(size=300) + (label == "rare")
    rows = "\n".join(f"{a:.4f},{b}" for a, b in zip(x, label, strict=True))
    (tmp_path / "t.csv").write_text(f"x,y\n{rows}\n")
    short_run = ["data.file=t.csv", "data.label=y", "student.epochs=2", "teacher.epochs=2", "teacher.patience=null"]
    config = replace(override(preset("tabular"), short_run), data_dir=str(tmp_path))
    run_analysis("oversampling", config, [0], tmp_path / "out")
    data = written(tmp_path / "out", "oversampling")["data"]
    (seed,) = data["seeds"]
    assert seed["rarest"] == "rare"
    plain, over = seed["training_rows"]["plain"], seed["training_rows"]["oversampled"]
    assert plain[1] < plain[0]
    assert over == [plain[0]] * 2
    assert len(seed["rows"]) == 8
    # one case again, its teacher trained on oversampled rows and its student not
    oversampled = replace(config, data=config.data | {"oversample": True})
    made = build_teacher(oversampled, load_data(oversampled), tmp_path / "again.safetensors")
    assert made == {t["teacher"]: t["metrics"] for t in seed["teachers"]}["oversampled"]
    again = run(MethodSpec("kd", {"alpha": 0.5}).apply(config), tmp_path / "again.safetensors")
    case = {"method": "kd", "teacher": "oversampled", "student": "plain"}
    (found,) = (row["metrics"] for row in seed["rows"] if case.items() <= row.items())
    assert found == pytest.approx(again.metrics)


# ---- refusals, all before anything is written


@pytest.mark.parametrize(
    ("what", "settings", "seeds", "message"),
    [
        ("figg1", [], [0], "unknown analysis 'figg1'; did you mean 'fig1'"),
        ("fig1", [], [], "at least one seed"),
        ("fig1", [], [1, 1], "each only once"),
        ("fig1", ["student.model.hiden=3"], [0], "hiden"),
        ("fig3", ["student.model.hiden=3"], [0], "hiden"),
        ("fig5", ["data.nois=0.1"], [0], "nois"),
        ("oversampling", [], [0], "no option data.oversample"),
        ("fig4", ["teacher.model={}", "teacher.predictions=p.npz"], [0], "needs a network"),
        ("fig5", ["teacher.model={name: random_forest}"], [0], "needs a network"),
    ],
)
def test_what_cannot_be_done_is_refused_early(what, settings, seeds, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run_analysis(what, override(short(), settings), seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_analysis_is_not_done_again_and_an_unfinished_one_goes_on(noisy, inline, tmp_path, monkeypatch):
    run_analysis("alpha-over-epochs", noisy, [0], tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="already holds this analysis"):
        run_analysis("alpha-over-epochs", noisy, [0], tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "alpha-over-epochs.json").unlink()
    monkeypatch.setattr(compare_module, "run", None)  # nothing is trained again
    run_analysis("alpha-over-epochs", noisy, [0], tmp_path)
    assert json.loads((tmp_path / "alpha-over-epochs.json").read_text())["seeds"] == [0]
    (tmp_path / "alpha-over-epochs.json").unlink()
    with pytest.raises(InputError, match="other settings"):
        run_analysis("alpha-over-epochs", replace(noisy, temperature=3.0), [0], tmp_path)


# ---- the command


def test_every_analysis_has_a_task_and_a_function():
    for what, analysis in ANALYSES.items():
        assert callable(analysis)
        assert preset(default_task(what))
    assert usual_settings("fig4", "digits") == ["data.noise=0.3"]
    assert usual_settings("fig4", "hil") == usual_settings("cost", "digits") == []


@pytest.mark.parametrize(("given_noise", "noise"), [([], 0.3), (["data.noise=0.1"], 0.1)])
def test_the_command_prints_the_three_lines(given_noise, noise, inline, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = set_options(*given_noise)
    monkeypatch.setattr(sys, "argv", ["tgeokd", "reproduce", "alpha-over-epochs", "--seeds", "1", *settings])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    content = written(tmp_path / "runs" / "reproduce-alpha-over-epochs-digits", "alpha-over-epochs")
    assert content["config"]["data"]["noise"] == noise
    assert capsys.readouterr().out.splitlines()[:3] == content["lines"]


def test_the_command_refuses_an_unknown_analysis_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tgeokd", "reproduce", "figure1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "unknown analysis 'figure1'; did you mean 'fig1'" in capsys.readouterr().err
