from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from quick import short
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

from tgeokd.runs.build import load_data
from tgeokd.runs.results import RunResults
from tgeokd.runs.single import check, run
from tgeokd.runs.teacher import build_teacher, load_teacher
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace

SOURCE = load_digits()
LABEL_OF = {row.tobytes(): label for row, label in zip(SOURCE.data, SOURCE.target, strict=True)}


def forward(weights: dict[str, np.ndarray], inputs: torch.Tensor) -> np.ndarray:
    """Class probabilities of an MLP of linear layers with ReLU between them, in float64 from the saved arrays alone."""
    h = inputs.double().numpy()
    layers = sorted({int(name.split(".")[0]) for name in weights})
    for i, layer in enumerate(layers):
        h = h @ weights[f"{layer}.weight"].T.astype(np.float64) + weights[f"{layer}.bias"]
        if i < len(layers) - 1:
            h = np.maximum(h, 0)
    h = np.exp(h - h.max(axis=1, keepdims=True))
    return h / h.sum(axis=1, keepdims=True)


def true_labels(split) -> np.ndarray:
    return np.array([LABEL_OF[np.round(row.double().numpy() * 16).tobytes()] for row in split.inputs])


@pytest.fixture(scope="module")
def config():
    return short("data.noise=0.3", "seed=3")


@pytest.fixture(scope="module")
def teacher(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "deep" / "teacher.safetensors"
    return path, build_teacher(config, load_data(config), path)


@pytest.fixture(scope="module")
def finished(config, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "tgeo"
    return out, run(config, teacher[0], out)


def test_the_teacher_s_metrics_are_those_of_its_saved_weights(config, teacher):
    path, metrics = teacher
    data = load_data(config)
    for prefix, split in (("", data.test), ("val_", data.held_out)):
        probs = forward(load_file(path), split.inputs)
        assert metrics[f"{prefix}accuracy"] == pytest.approx(accuracy_score(split.target, probs.argmax(axis=1)))
        assert metrics[f"{prefix}nll"] == pytest.approx(log_loss(split.target, probs), rel=1e-5)
    assert {each.name for each in path.parent.iterdir()} == {
        path.name,
        f"{path.name}.sha256",
    }  # nothing temporary stays


def test_the_loaded_teacher_is_the_saved_one(config, teacher):
    data = load_data(config)
    probs = load_teacher(config, data, teacher[0]).eval()(data.test.inputs).softmax(dim=-1)
    np.testing.assert_allclose(probs.detach().numpy(), forward(load_file(teacher[0]), data.test.inputs), atol=1e-6)


def test_results_json_is_what_the_saved_student_achieves(config, finished):
    out, result = finished
    written = RunResults.read(out / "results.json")
    data = load_data(config)
    weights = load_file(out / "student.safetensors")
    for prefix, split in (("", data.test), ("val_", data.held_out)):
        probs, labels = forward(weights, split.inputs), true_labels(split)
        assert written.run.metrics[f"{prefix}accuracy"] == pytest.approx(accuracy_score(labels, probs.argmax(axis=1)))
        assert written.run.metrics[f"{prefix}nll"] == pytest.approx(log_loss(labels, probs), rel=1e-5)
    assert written.run == result
    assert (written.task, written.data, written.class_names) == ("digits", {}, list("0123456789"))
    assert (result.method, result.options, result.train_on, result.seed) == ("tgeo", {}, "train", 3)
    assert (result.epochs, result.trains_on_validation) == (2, True)  # by default outer=union
    assert result.seconds > 0
    assert 50 < result.peak_memory_mb < 50_000  # a process with torch in it
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert result.best_epoch == int(np.argmax([record["val_accuracy"] for record in records]))


def test_a_run_leaves_the_promised_files_and_nothing_else(finished):
    assert {path.name.removesuffix(".sha256") for path in finished[0].iterdir()} == {
        "metrics.jsonl",
        "student.safetensors",
        "checkpoints",
        "results.json",
        "ratios.json",
    }
    assert {path.suffix for path in (finished[0] / "checkpoints").iterdir()} == {".pt", ".sha256"}
    records = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]
    last = RunResults.read(finished[0] / "results.json").run.metrics
    assert records[-1]["val_accuracy"] == last["val_accuracy"]
    assert records[-1]["val_loss"] == pytest.approx(last["val_nll"])


def test_ratios_json_holds_one_alpha_and_one_flag_for_each_training_sample(config, finished):
    ratios = json.loads((finished[0] / "ratios.json").read_text())
    data = load_data(config)
    assert len(ratios["alpha"]) == len(ratios["corrupted"]) == 600
    assert all(0 <= a <= 1 for a in ratios["alpha"])
    assert ratios["corrupted"] == (data.train.target.numpy() != true_labels(data.train)).tolist()
    assert 140 < sum(ratios["corrupted"]) <= 180


def test_ratios_are_in_the_order_of_the_training_samples(config, teacher, tmp_path):
    run(replace(config, method="ada"), teacher[0], tmp_path)
    data = load_data(config)
    probs = forward(load_file(teacher[0]), data.train.inputs)
    of_label = probs[np.arange(600), data.train.target]
    margin = np.maximum(of_label - (1 - of_label) / 9, 0)
    written = json.loads((tmp_path / "ratios.json").read_text())["alpha"]
    np.testing.assert_allclose(written, margin, atol=1e-4)
    assert np.std(margin) > 0.01  # an order that can be told


@pytest.mark.parametrize("method", ["ce", "rw"])
def test_a_method_without_ratios_of_its_own_writes_none(config, teacher, tmp_path, method):
    run(replace(config, method=method), teacher[0], tmp_path)
    assert (tmp_path / "results.json").exists()
    assert not (tmp_path / "ratios.json").exists()


def test_the_same_config_gives_the_same_student_whatever_went_before(config, teacher, finished, tmp_path):
    torch.manual_seed(12345)
    again = run(config, teacher[0], tmp_path)
    assert again.metrics == finished[1].metrics
    name = "student.safetensors"
    assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_the_same_teacher_comes_from_the_same_seed_and_another_from_another(config, teacher, tmp_path):
    torch.manual_seed(54321)
    build_teacher(config, load_data(config), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == teacher[0].read_bytes()
    other = replace(config, seed=4)
    build_teacher(other, load_data(other), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() != teacher[0].read_bytes()


def test_nothing_is_written_without_a_folder(config, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(replace(config, method="kd"), teacher[0])
    assert result.epochs == 2
    assert not list(tmp_path.iterdir())


def test_train_and_held_out_together_train_on_both(config, teacher, tmp_path):
    # with one epoch of 800 samples in batches of 64 the student takes 13 steps, of 600 samples 10
    one = replace(config, method="ce", student=replace(config.student, epochs=1))
    for train_on, steps in (("train", 10), ("train+val", 13)):
        run(replace(one, train_on=train_on), teacher[0], tmp_path / train_on)
        last = max((tmp_path / train_on / "checkpoints").glob("step-*.pt"))
        assert int(last.stem.removeprefix("step-")) == steps


@pytest.mark.parametrize("settings", [["method=tgeo"], ["method=tgeo", "options.outer=union"], ["method=rw"]])
def test_a_method_that_needs_held_out_samples_may_not_train_on_them(settings, tmp_path):
    method = settings[0].removeprefix("method=")
    wrong = short(*settings, "train_on=train+val")
    for refuse in (lambda: check(wrong), lambda: run(wrong, tmp_path / "teacher", tmp_path / "out")):
        with pytest.raises(InputError, match=f"method '{method}'.*train_on=train\\+val"):
            refuse()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["temperature=0"], "temperature.*0"),
        (["temperature=-1"], "temperature.*-1"),
        (["method=tgoe"], "'tgoe'.*'tgeo'"),
        (["method=kd", "options.alpha=2"], r"alpha.*not 2"),
        (["options.outre=union"], "'tgeo'.*'outre'.*'outer'"),
        (["options.outer_batch_size=0"], "outer_batch_size.*0"),
        (["data.nois=0.1"], "'digits'.*'nois'.*'noise'"),
        (["data.noise=1.5"], r"noise.*1\.5"),
        (["student.model.name=mpl"], "'mpl'.*'mlp'"),
        (["teacher.model={hidden: [3]}"], r"model\.name"),
        (["student.optimizer.lr=0"], "lr.*0"),
        (["teacher.optimizer.lr=-1"], "lr.*-1"),
        (["task=digit"], "'digit'.*'digits'"),
        (["checkpoint_every=0"], "checkpoint_every.*not 0"),
        (["student.patience=0"], "student.patience.*not 0"),
        (["teacher.patience=-1"], "teacher.patience.*not -1"),
        (["student.clip_norm=-1"], "clip_norm.*-1"),
        (["teacher.clip_norm=0"], "clip_norm.*0"),
        (["student.optimizer.momentum=-1"], "sgd: .*momentum"),
        (["student.model.inputs=3"], r"model\.inputs"),
        (["teacher.model.num_classes=3"], r"model\.num_classes"),
        (["options.name=x"], "'tgeo'.*'name'"),
        (["options.lr=-1"], "lr.*-1"),
        (["options.update_interval=0"], "update_interval.*not 0"),
        (["accelerator=gpux"], "accelerator.*gpux"),
        (["precision=33-true"], "precision.*33-true"),
        (["precision=16-mixed"], "precision '16-mixed'"),
        (["seed=-1"], "seed.*-1"),
    ],
)
def test_wrong_settings_fail_before_anything_is_trained(settings, message):
    with pytest.raises(InputError, match=message):
        check(short(*settings))


def test_the_seed_decides_the_first_weights_of_teacher_and_student_which_differ(tmp_path):
    # at this rate nothing is learned: what is saved is where training began
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "model={name: mlp, hidden: [16]}", "epochs=1"]
    settings = [f"{who}.{setting}" for who in ("teacher", "student") for setting in still]
    began = {}
    for seed in (0, 1):
        config = short("method=ce", f"seed={seed}", *settings)
        path = tmp_path / f"{seed}" / "teacher.safetensors"
        build_teacher(config, load_data(config), path)
        run(config, path, tmp_path / f"{seed}" / "run")
        began["teacher", seed] = load_file(path)["1.weight"]
        began["student", seed] = load_file(tmp_path / f"{seed}" / "run" / "student.safetensors")["1.weight"]
    values = list(began.values())
    assert {value.shape for value in values} == {(16, 64)}
    for i, a in enumerate(values):
        assert all(np.abs(a - b).max() > 0.01 for b in values[:i])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = torch.nn.Linear(64, 16).weight.detach().numpy()
    np.testing.assert_allclose(began["student", 1], expected, atol=1e-6)


def test_a_missing_teacher_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        run(config, tmp_path / "nowhere.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors at all",
        b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",  # safetensors without a tensor
    ],
    ids=["empty", "text", "no tensors"],
)
def test_a_broken_teacher_file_is_refused(config, tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.safetensors"):
        run(config, path)


def test_a_teacher_of_another_shape_is_refused_in_one_line(config, teacher, tmp_path):
    wrong = short("data.noise=0.3", "seed=3", "teacher.model.hidden=[5]")
    with pytest.raises(InputError, match=teacher[0].name) as caught:
        run(wrong, teacher[0], tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_resuming_a_finished_run_gives_the_same_metrics_and_student(config, teacher, finished, tmp_path):
    out = tmp_path / "run"
    run(config, teacher[0], out)
    again = run(config, teacher[0], out, resume=True)
    assert again.metrics == finished[1].metrics
    assert again.epochs == 2
    name = "student.safetensors"
    assert (out / name).read_bytes() == (finished[0] / name).read_bytes()


def test_seconds_are_those_of_all_epochs_also_after_a_resume(config, teacher, tmp_path):
    run(config, teacher[0], tmp_path)
    again = run(config, teacher[0], tmp_path, resume=True)
    epochs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert again.seconds >= 0.9 * sum(record["seconds"] for record in epochs)
