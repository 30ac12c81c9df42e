"""Several batches per optimizer step are one large batch."""

from __future__ import annotations

import pytest
import torch
from small_training import assert_close, data, distiller_of, loader, validation_loader, weights
from torch.utils.data import DataLoader

from tgeokd import MetaWeightNet, TGeoKD, VanillaKD, WeightedSoftLabelKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.training.callbacks import Callback


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


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_step_reads_its_own_batches_and_no_further(accumulate):
    """A batch that is read ahead would draw its augmentation before the callbacks of the step before."""
    read, at_end = [], []

    class Counted:
        def __iter__(self):
            for k, item in enumerate(loader(56)):
                read.append(k)
                yield item

    class Note(Callback):
        def on_fit_start(self, distiller):
            read.clear()

        def on_step_end(self, distiller):
            at_end.append(len(read))

    distiller_of("kd", accumulate=accumulate, callbacks=[Note()]).fit(Counted(), epochs=1)
    assert at_end == [min(7, accumulate * (k + 1)) for k in range(-(-7 // accumulate))]


@pytest.mark.parametrize("method", ["kd", "rw", "tgeo", "lskd", "gce", "rld", "eakd", "mwnet"])
def test_a_last_step_of_fewer_batches_is_the_mean_over_its_samples(method):
    """40 samples in batches of 8, four batches a step: the second step has one batch."""
    # the normalised weights of mwnet belong to a batch, not to a step
    options = {"tgeo": lambda: TGeoKD(outer="holdout"), "mwnet": lambda: MetaWeightNet(normalise=False)}
    runs = []
    for batch_size, accumulate in ((32, 1), (8, 4)):
        distiller = distiller_of(options.get(method, lambda: method)(), accumulate=accumulate)
        history = distiller.fit(loader(40, batch_size), validation_loader(), epochs=2)
        runs.append(weights(distiller.student) | {"loss": torch.tensor(history["train_loss"])})
    assert_close(*runs)


def test_smaller_batches_without_accumulation_differ():
    runs = []
    for batch_size, accumulate in ((16, 1), (8, 1)):
        distiller = distiller_of("kd", accumulate=accumulate)
        distiller.fit(loader(40, batch_size), epochs=1)
        runs.append(weights(distiller.student))
    assert max(float((runs[0][k] - runs[1][k]).abs().max()) for k in runs[0]) > 1e-3
