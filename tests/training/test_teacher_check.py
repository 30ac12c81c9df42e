"""Before training, the teacher is compared with the labels; one that cannot be the teacher of these samples is refused."""

from __future__ import annotations

import copy
import logging
import os
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small_training import CLASSES, FEATURES, assert_same, distiller_of, loader, mlp, refused, weights
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import DistillationStep, TGeoKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.batch import Batch
from tgeokd.methods import METHODS
from tgeokd.teachers import StoredPredictions, file_hashes, row_digests
from tgeokd.teachers.base import Teacher
from tgeokd.training.parallel import ParallelContext
from tgeokd.training.teacher_check import TeacherCheck

N, HELD = 160, 80


def samples(n: int = N + HELD, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Inputs whose largest feature is nearly always the label, and labels in random order."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, classes, (n,), generator=generator)
    inputs = torch.randn(n, FEATURES, generator=generator)
    inputs[torch.arange(n), target] += 4
    return inputs, target


def loaders(target: Tensor | None = None, **options) -> tuple[DataLoader, DataLoader]:
    """Training and validation samples: every third is a validation sample."""
    inputs, labels = samples()
    labels = labels if target is None else target
    held = torch.arange(N + HELD) % 3 == 2
    ids = torch.arange(N + HELD)
    parts = [ArrayDataset(inputs[rows], labels[rows], ids[rows]) for rows in (~held, held)]
    return DataLoader(parts[0], 16, shuffle=True, **options), DataLoader(parts[1], 20)


class Largest(nn.Module):
    """Predicts the largest feature, with the classes in some order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = list(order or range(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x[:, :CLASSES][:, self.order]


def stored(shift: int = 0) -> StoredPredictions:
    """Predictions for all samples, shifted by rows."""
    return StoredPredictions(Largest()(samples()[0]).roll(shift, 0), torch.arange(N + HELD))


def fit(distiller, *, epochs=1, **options):
    distiller.fit(*loaders(**options), epochs=epochs)
    return weights(distiller.student)


WITH_TEACHER = [name for name in METHODS if METHODS[name].needs_teacher]


@pytest.mark.parametrize("method", WITH_TEACHER)
@pytest.mark.parametrize("shift", [1, -2])
def test_predictions_shifted_by_rows_are_refused(method, shift, tmp_path):
    shares = [(Largest()(samples()[0]).roll(k, 0).argmax(1) == samples()[1]).double().mean() for k in (shift, 0)]
    assert shares[0] < 0.5 < 0.9 < shares[1]
    rows = "shifted by 1 row " if shift == 1 else "shifted by 2 rows "
    with refused("the largest class alone", rows, "allow_bad_teacher"):
        distiller_of(method, teacher=stored(shift)).fit(*loaders(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_permuted_classes_are_refused_and_named(method):
    with refused("class 2 of the teacher is label 0", "allow_bad_teacher"):
        fit(distiller_of(method, teacher=Largest(1, 2, 0)))
    fit(distiller_of(method, teacher=Largest()))


def test_a_teacher_of_other_samples_is_refused():
    teacher = StoredPredictions(
        stored().stored_logits[torch.randperm(N + HELD, generator=torch.Generator().manual_seed(2))],
        torch.arange(N + HELD),
    )
    target = torch.arange(N + HELD) % 2  # nothing in common with the inputs
    with refused("nothing in common", "allow_bad_teacher"):
        distiller_of("kd", teacher=teacher).fit(*loaders(target), epochs=1)


@pytest.mark.parametrize("method", ["kd", "tgeo"])
def test_an_absurd_teacher_can_be_allowed_and_is_warned_about(method, caplog):
    with caplog.at_level(logging.WARNING, "tgeokd"):
        fit(distiller_of(method, teacher=stored(1), allow_bad_teacher=True))
    found = [record.getMessage() for record in caplog.records if "shifted by 1 row" in record.getMessage()]
    assert found


def test_the_agreement_is_logged_with_the_lowest_classes(caplog):
    with caplog.at_level(logging.INFO, "tgeokd"):
        fit(distiller_of("kd", teacher=stored()))
    found = [record.getMessage() for record in caplog.records if "lowest by class" in record.getMessage()]
    assert len(found) == 2
    assert "160 training labels" in found[0]
    assert "80 validation labels" in found[1]


@pytest.mark.parametrize("method", ["kd", "tgeo"])
def test_wrong_predictions_of_the_validation_samples_alone_are_refused(method):
    held = torch.arange(N + HELD) % 3 == 2
    logits = stored().stored_logits
    logits[held] = logits[held][:, [1, 2, 0]]
    with refused("80 validation labels", "class 2 of the teacher is label 0"):
        fit(distiller_of(method, teacher=StoredPredictions(logits, torch.arange(N + HELD))))


def test_predictions_of_the_training_samples_alone_are_enough_where_no_others_are_needed():
    known = (torch.arange(N + HELD) % 3 != 2).nonzero().flatten()
    fit(distiller_of("kd", teacher=StoredPredictions(stored().stored_logits[known], known)))


def test_labels_in_another_row_than_their_inputs_are_found_by_id_and_by_order():
    inputs, target = samples()
    ids = torch.arange(N + HELD)
    rolled = target.roll(-1)
    by_id = DataLoader(ArrayDataset(inputs, rolled, ids), 16, shuffle=True)
    by_order = DataLoader(ArrayDataset(inputs, rolled), 16)
    for given in (by_id, by_order):
        with refused("shifted by 1 row "):
            distiller_of("kd", teacher=Largest()).fit(given, epochs=1)


class Own(Teacher):
    """A teacher of the user's own, that knows the training samples only."""

    def logits(self, batch: Batch) -> Tensor:
        assert bool((batch.ids % 3 != 2).all())
        return Largest(1, 2, 0)(batch.inputs)


@pytest.mark.parametrize(
    "options", [{"cache_teacher": True}, {"teacher": Own()}, {"teacher": Largest(1, 2, 0).forward}]
)
def test_stored_logits_and_teachers_of_ones_own_are_compared_on_the_training_samples(options):
    with refused("160 training labels", "class 2 of the teacher is label 0"):
        fit(distiller_of("kd", **{"teacher": Largest(1, 2, 0), **options}))


def test_a_loop_of_ones_own_is_protected_too():
    train, held = loaders()
    student = mlp(1)
    step = DistillationStep(student, SGD(student.parameters(), 0.1), "kd", validation=held)
    with refused("class 2 of the teacher is label 0"):
        step.prepare(train, Largest(1, 2, 0))
    step.prepare(train, Largest(1, 2, 0), allow_bad_teacher=True)


@pytest.mark.parametrize("method", ["kd", TGeoKD(outer="holdout"), "rw"])
@pytest.mark.parametrize("cached", [False, True])
def test_training_is_the_same_with_and_without_the_comparison(method, cached, monkeypatch):
    def go():
        generator = torch.Generator().manual_seed(4)
        distiller = distiller_of(copy.deepcopy(method), teacher=Largest(), cache_teacher=cached)
        return fit(distiller, epochs=2, generator=generator), generator.get_state()

    with_it, state = go()
    monkeypatch.setattr(TeacherCheck, "sample", lambda *_: None)
    monkeypatch.setattr(TeacherCheck, "finish", lambda *_, **__: None)
    without_it, same_state = go()
    assert_same(with_it, without_it)
    assert torch.equal(state, same_state)


# ---- what a file of predictions says of its samples


def described(**changed) -> StoredPredictions:
    inputs, target = samples()
    known = {"labels": target, "hashes": row_digests([inputs])} | changed
    return StoredPredictions(Largest()(inputs), torch.arange(N + HELD), **known)


@pytest.mark.parametrize("method", ["kd", "tgeo"])
def test_stored_labels_and_hashes_are_compared(method):
    labels, inputs = samples()[1].clone(), samples()[0].clone()
    fit(distiller_of(method, teacher=described()))
    labels[9] = (labels[9] + 1) % CLASSES
    with refused("sample 9 has the label", "1 of", "allow_bad_teacher"):
        fit(distiller_of(method, teacher=described(labels=labels)))
    inputs[12] += 1
    with refused("sample 12 has the hash", "1 of", "allow_bad_teacher"):
        fit(distiller_of(method, teacher=described(hashes=row_digests([inputs]))))
    fit(distiller_of(method, teacher=described(labels=labels), allow_bad_teacher=True))


def test_hashes_find_a_shift_that_the_labels_do_not_show():
    inputs, target = samples()
    inputs, target = inputs[target.argsort()], target.sort().values  # as in folders, one for each class
    ids = torch.arange(N + HELD)
    teacher = StoredPredictions(Largest()(inputs).roll(1, 0), ids, hashes=row_digests([inputs]).roll(1))
    with refused("has the hash"):
        distiller_of("kd", teacher=teacher).fit(DataLoader(ArrayDataset(inputs, target, ids), 16), epochs=1)


def test_files_are_recognised_by_their_content(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 10)
    hashes, target = file_hashes(paths), torch.arange(6) % 2

    dataset = TensorDataset(torch.zeros(6, 1), target, torch.arange(6))
    dataset.ids = torch.arange(6)
    dataset.paths = np.array([os.fsencode(path) for path in paths])
    for shift in (0, 1):
        check = TeacherCheck(StoredPredictions(torch.zeros(6, 2), torch.arange(6), hashes=hashes.roll(shift)), 2)
        check.add("training", Batch(torch.zeros(6, 1), target, torch.arange(6)), torch.zeros(6, 2))
        check.look_at("training", DataLoader(dataset))
        with refused("sample 0 has the hash", "6 of 6") if shift else nullcontext():
            check.finish(ParallelContext())


def test_the_order_of_the_classes_of_a_data_set_is_compared_with_the_teacher_s():
    train, held = loaders()
    train.dataset.classes = ["a", "b", "c"]
    for names in (("a", "b", "c"), ("x", "y", "z"), ("b", "a", "c")):
        teacher = StoredPredictions(Largest()(samples()[0]), torch.arange(N + HELD), class_names=names)
        with refused("b, a, c", "a, b, c", "class_names") if names[0] == "b" else nullcontext():
            distiller_of("kd", teacher=teacher).fit(train, held, epochs=1)


# ---- a teacher that is the student


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("share", ["whole", "wrapped", "layer"])
def test_a_teacher_that_would_be_trained_is_refused(share):
    net = mlp(1)
    other = mlp(2)
    other[0] = net[0]
    teacher = {"whole": net, "wrapped": Wrapped(net), "layer": other}[share]
    with refused("itself" if share == "whole" else "shares", "deepcopy"):
        distiller_of("kd", student=net, teacher=teacher)
    step = DistillationStep(net, SGD(net.parameters(), 0.1), "kd")
    with refused("deepcopy"):
        step.prepare(loader(), teacher)


def test_a_copy_and_a_shared_frozen_layer_are_accepted():
    net = mlp(1)
    distiller_of("kd", student=net, teacher=copy.deepcopy(net)).fit(loader(), epochs=1)
    frozen, other = mlp(1), mlp(2)
    frozen[0].requires_grad_(False)
    other[0] = frozen[0]
    distiller_of("kd", student=frozen, teacher=other).fit(loader(), epochs=1)


@pytest.mark.parametrize("kind", ["kd", "tgeo"])
def test_neighbours_in_a_file_sorted_by_class_are_no_shift(kind):
    """A teacher that knows its training labels by heart guesses those of validation samples less well: no fault."""
    n, classes, generator = 4000, 40, torch.Generator().manual_seed(0)
    target = torch.arange(n) * classes // n  # sorted by class
    held = torch.rand(n, generator=generator) < 0.25
    predicted = torch.where(held & (torch.rand(n, generator=generator) < 0.2), (target + 1) % classes, target)
    teacher = StoredPredictions(5 * nn.functional.one_hot(predicted, classes).float(), torch.arange(n))
    inputs = torch.randn(n, 2, generator=generator)
    train, validation = (
        DataLoader(ArrayDataset(inputs[rows], target[rows], torch.arange(n)[rows]), 500, shuffle=rows is not held)
        for rows in (~held, held)
    )
    student = nn.Linear(2, classes)
    method = kind if kind == "kd" else TGeoKD(outer="holdout")
    distiller_of(method, student=student, teacher=teacher).fit(train, validation, epochs=1)
