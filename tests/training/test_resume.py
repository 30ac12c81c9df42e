"""A run that was interrupted and is resumed from the end of an epoch ends like one that was not interrupted."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from resumed_runs import (
    EPOCHS,
    STEPS,
    At,
    CutOff,
    assert_same_end,
    contents,
    crash,
    cut_off_and_resumed,
    distiller_of,
    fit,
    metrics,
    train_loader,
    validation_loader,
)
from small_training import Unsized, data, refused
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tgeokd import AdaptiveKD, AnnealingKD, MetaWeightNet, TGeoKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.loaders import shuffling
from tgeokd.teachers import StoredPredictions

# ---- everything that has a state

METHODS = {
    "ce": lambda: "ce",
    "kd": lambda: "kd",
    "anl": lambda: AnnealingKD(steps=4),
    "anl regression": lambda: AnnealingKD(form="regression", phase_one=0.8),
    "ada": lambda: AdaptiveKD(level="class"),
    "wls": lambda: "wls",
    "rw": lambda: "rw",
    "dkd": lambda: "dkd",
    "rld": lambda: "rld",
    "mwnet": lambda: MetaWeightNet(update_interval=2),
    "tgeo": lambda: "tgeo",
    "tgeo train": lambda: TGeoKD(outer="train", encoding="vector", hypergradient="last_layer", update_interval=3),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", [3 * STEPS + 1, STEPS + 2])
def test_every_method_resumes_bit_for_bit(tmp_path, name, step):
    cut_off_and_resumed(tmp_path, lambda callback: distiller_of(METHODS[name](), callback), step)


SCHEDULERS = {
    "cosine": lambda o: CosineAnnealingLR(o, EPOCHS),
    "multistep": lambda o: MultiStepLR(o, [1, 3]),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=1, factor=0.3, threshold=1e9, threshold_mode="abs"),
    "one cycle": lambda o: OneCycleLR(o, 0.3, total_steps=EPOCHS + 1),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_schedulers_and_optimizers_resume(tmp_path, scheduler, optimizer):
    def make(callback):
        return distiller_of("kd", callback, scheduler=SCHEDULERS[scheduler], optimizer=optimizer)

    _, whole = cut_off_and_resumed(tmp_path, make, 2 * STEPS + 1)
    assert len(set(whole.history["lr"])) > 1


def test_the_loaders_own_generator_continues(tmp_path):
    seen = {}

    class Seen(At):
        def on_fit_start(self, distiller):
            seen[distiller] = []
            distiller.student.register_forward_hook(
                lambda module, inputs, _: seen[distiller].append(inputs[0][:, 0]) if module.training else None
            )

    loaders = []

    def fit(distiller, **options):
        loaders.append(train_loader(generator_seed=3))
        distiller.fit(loaders[-1], validation_loader(), epochs=EPOCHS, **options)

    def make(callback):
        return distiller_of("kd", Seen() if callback is None else Seen(callback.step, callback.act))

    resumed, whole = cut_off_and_resumed(tmp_path, make, 2 * STEPS + 1, fit)
    assert torch.equal(torch.cat(seen[resumed]), torch.cat(seen[whole][2 * STEPS :]))
    assert torch.equal(loaders[1].generator.get_state(), loaders[2].generator.get_state())


@pytest.mark.parametrize("epoch", [1, 5, 7, 9, 10])
def test_early_stopping_continues_to_count(tmp_path, epoch):
    def fit_early(distiller, **options):
        fit(distiller, epochs=40, patience=4, **options)

    _, whole = cut_off_and_resumed(
        tmp_path, lambda callback: distiller_of("ce", callback, lr=0.2), epoch * STEPS + 1, fit_early
    )
    losses = whole.history["val_loss"]
    best = losses.index(min(losses))
    assert 5 < best < 9
    assert len(losses) == best + 5  # so the cuts lie before, at and after the best epoch


def test_epochs_after_the_last_checkpoint_are_repeated(tmp_path):
    def fit_rarely(distiller, **options):
        fit(distiller, checkpoint_every=2, **options)

    with pytest.raises(CutOff):
        fit_rarely(distiller_of("kd", At(3 * STEPS + 1, crash)), out=tmp_path / "once")
    assert len(metrics(tmp_path / "once")) == 3
    cut_off_and_resumed(tmp_path, lambda callback: distiller_of("kd", callback), 3 * STEPS + 1, fit_rarely)


def test_a_line_written_just_before_the_crash_is_not_there_twice(tmp_path):
    fit(distiller_of(), epochs=2, out=tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_loss": 9}\n{"epoch": 3, "tra')
    fit(distiller_of(), epochs=4, out=tmp_path, resume=True)
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1, 2, 3]
    assert metrics(tmp_path)[2]["train_loss"] != 9


# ---- finished runs


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = distiller_of("kd")
    fit(first, epochs=3, out=tmp_path)
    before = metrics(tmp_path)
    again = distiller_of("kd")
    fit(again, epochs=3, out=tmp_path, resume=True)
    assert len(again.history) == again.resumed_at == 3
    assert metrics(tmp_path) == before
    assert_same_end(again, first)


def test_a_finished_run_can_be_made_longer(tmp_path):
    fit(distiller_of("kd"), epochs=2, out=tmp_path / "a")
    longer, whole = distiller_of("kd"), distiller_of("kd")
    fit(longer, out=tmp_path / "a", resume=True)
    fit(whole, out=tmp_path / "b")
    assert_same_end(longer, whole)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_run_that_stopped_early_stays_stopped_with_its_best_weights(tmp_path):
    first, again = distiller_of("ce", lr=1.5), distiller_of("ce", lr=1.5)
    fit(first, epochs=40, patience=3, out=tmp_path)
    fit(again, epochs=40, patience=3, out=tmp_path, resume=True)
    assert len(again.history) == len(first.history) < 40
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name])


def test_a_run_with_a_progress_bar_can_be_resumed_without(tmp_path, capsys):
    fit(distiller_of(progress=True), epochs=1, out=tmp_path)
    fit(distiller_of(progress=False), epochs=2, out=tmp_path, resume=True)


def test_nothing_to_resume_is_refused(tmp_path):
    with refused(tmp_path / "none"):
        fit(distiller_of(), epochs=1, out=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_callback_with_a_state_must_be_there_again(tmp_path):
    fit(distiller_of(), epochs=2, patience=5, out=tmp_path)
    before = contents(tmp_path)
    with refused("EarlyStopping"):
        fit(distiller_of(), epochs=3, out=tmp_path, resume=True)
    assert contents(tmp_path) == before


# ---- loaders and data sets


def test_the_step_count_of_a_loader_without_length_continues(tmp_path):
    def fit(distiller, **options):
        distiller.fit(Unsized(train_loader()), validation_loader(), epochs=EPOCHS, **options)

    def make(callback):
        return distiller_of(TGeoKD(outer="holdout", update_interval=2, hypergradient="last_layer"), callback)

    cut_off_and_resumed(tmp_path, make, 3 * STEPS + 1, fit)


def test_the_generator_of_a_sampler_continues(tmp_path):
    def fit(distiller, **options):
        sampler = RandomSampler(range(20), generator=torch.Generator().manual_seed(3))
        train = train_loader(shuffle=False, sampler=sampler)
        distiller.fit(train, validation_loader(), epochs=EPOCHS, **options)

    cut_off_and_resumed(tmp_path, lambda callback: distiller_of("kd", callback), 3 * STEPS + 1, fit)


class InBlocks(ArrayDataset):
    """Samples with ids that a loader shuffles by blocks."""

    block_size = 3

    def __init__(self, n, seed):
        super().__init__(*data(n, seed), ids=torch.arange(n) + 100 * seed)


@pytest.mark.parametrize("generator_seed", [None, 3])
@pytest.mark.parametrize("outer", ["holdout", "union"])
def test_a_shuffle_by_blocks_and_stored_predictions_continue(tmp_path, generator_seed, outer):
    stored = StoredPredictions(
        torch.randn(32, 3, generator=torch.Generator().manual_seed(0)),
        torch.cat([torch.arange(20), torch.arange(12) + 700]),
    )

    def fit(distiller, **options):
        generator = None if generator_seed is None else torch.Generator().manual_seed(generator_seed)
        train = InBlocks(20, 0)
        loader = DataLoader(train, 8, **shuffling(train, generator))
        distiller.fit(loader, DataLoader(InBlocks(12, 7), 6), epochs=EPOCHS, seed=2, **options)

    def make(callback):
        return distiller_of(TGeoKD(outer=outer, outer_batch_size=5), callback, teacher=stored)

    steps = 4 if outer == "union" else 3
    resumed, _ = cut_off_and_resumed(tmp_path, make, steps * 3 + 1, fit)
    assert resumed.step == steps * EPOCHS


class Augmented(Dataset):
    """Augments with random numbers of Python and NumPy, which the seed of the run covers."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x, y = data(20)
        return x[index] * random.uniform(0.5, 1.5) + float(np.random.uniform(-0.1, 0.1)), y[index]


def test_random_numbers_of_python_and_numpy_continue(tmp_path):
    def fit(distiller, **options):
        distiller.fit(DataLoader(Augmented(), 8), validation_loader(), epochs=EPOCHS, **options)

    cut_off_and_resumed(tmp_path, lambda callback: distiller_of("kd", callback), 3 * STEPS + 1, fit)
