"""Several batches per optimizer step are one large batch."""

from __future__ import annotations

import pytest
from small_training import assert_close, data, distiller_of, loader, validation_loader, weights
from torch.utils.data import DataLoader

from tgeokd import TGeoKD, VanillaKD, WeightedSoftLabelKD
from tgeokd.data.loaders import ArrayDataset


@pytest.mark.parametrize(
    "method",
    [
        lambda: VanillaKD(alpha=0.5),
        WeightedSoftLabelKD,
        lambda: TGeoKD(hypergradient="forward"),
        lambda: TGeoKD(hypergradient="last_layer", outer="union"),
    ],
    ids=["kd", "wls", "tgeo", "tgeo-union"],
)
def test_accumulated_batches_are_one_large_batch(method):
    runs, alphas = [], []
    for batch_size, accumulate in ((16, 1), (8, 2)):
        distiller = distiller_of(method(), momentum=0.9, accumulate=accumulate)
        train = DataLoader(ArrayDataset(*data(40)), batch_size)  # 16, 16, 8
        history = distiller.fit(train, validation_loader(), epochs=3)
        runs.append(weights(distiller.student))
        alphas.append(history["alpha_mean"])
        assert distiller.step == 3 * (4 if distiller.method.outer == "union" else 3)
    assert_close(*runs, rtol=0, atol=1e-6)
    assert alphas[0] == pytest.approx(alphas[1], abs=1e-6)


def test_another_way_to_accumulate_would_show():
    runs = []
    for batch_size, accumulate in ((16, 1), (8, 1)):
        distiller = distiller_of("kd", accumulate=accumulate)
        distiller.fit(loader(40, batch_size), epochs=1)
        runs.append(weights(distiller.student))
    assert max(float((runs[0][k] - runs[1][k]).abs().max()) for k in runs[0]) > 1e-3
