"""Which samples the student trains on, and which ones the outer problem draws."""

from __future__ import annotations

import logging

import pytest
from small_training import data, distiller_of, loader, mlp, seen_by, validation_loader
from torch.utils.data import DataLoader

from tgeokd import ReweightingKD, TGeoKD
from tgeokd.data.arrays import ArrayDataset


@pytest.mark.parametrize(("outer", "count"), [("holdout", 24), ("train", 24), ("union", 36)])
@pytest.mark.parametrize("method", [TGeoKD, ReweightingKD])
def test_what_each_outer_mode_trains_on(method, outer, count):
    trained_on = []
    student = mlp(1)
    # The loop's own forward passes go through the module; their samples are counted where they carry a graph.
    x_train, x_held = data(24)[0], data(12, seed=7)[0]

    def note(module, inputs, output):
        if module.training and output.grad_fn is not None:
            trained_on.extend(inputs[0].tolist())

    student.register_forward_hook(note)
    distiller = distiller_of(method(outer=outer, hypergradient="finite_difference"), student=student)
    history = distiller.fit(loader(shuffle=True), validation_loader(), epochs=2)
    assert [seen_by(record) for record in history] == [count] * 2
    expected = sorted([*x_train.tolist(), *(x_held.tolist() if outer == "union" else [])] * 2)
    assert sorted(trained_on) == expected


def test_outer_samples_come_from_where_they_should():
    drawn = {}
    for outer in ("holdout", "train", "union"):
        student, seen = mlp(1), []
        student.register_forward_pre_hook(
            lambda module, inputs, seen=seen: None if module.training else seen.extend(inputs[0].tolist())
        )
        distiller = distiller_of(TGeoKD(outer=outer, update_interval=1, hypergradient="last_layer"), student=student)
        distiller.fit(
            DataLoader(ArrayDataset(*data(24)), 8), None if outer == "train" else validation_loader(), epochs=1
        )
        drawn[outer] = seen
    x_train, x_held = data(24)[0].tolist(), data(12, seed=7)[0].tolist()
    # apart from the first batch, which is checked before training, only validation samples meet the student in eval mode
    for outer in ("holdout", "union"):
        assert all(row in x_held for row in drawn[outer][8:])
    assert all(row in x_train for row in drawn["train"])
    assert len(drawn["train"]) == 8 + 3 * 8


def test_training_on_validation_samples_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="tgeokd"):
        distiller_of(TGeoKD(outer="holdout")).fit(loader(), validation_loader(), epochs=1)
        assert "outer='union'" not in caplog.text
        distiller_of(TGeoKD()).fit(loader(), validation_loader(), epochs=1)
    assert caplog.text.count("outer='union'") == 1
