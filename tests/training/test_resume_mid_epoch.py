"""A run that is resumed from a checkpoint in the middle of an epoch ends like one that was not interrupted."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass

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
    resumed_and_whole,
    save_and_crash,
    train_loader,
    validation_loader,
)
from small_training import CountedTeacher, Recorder, Unsized, data, refused
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tgeokd import MetaWeightNet, TGeoKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.teachers import TeacherCacheOptions
from tgeokd.training.callbacks import Callback

SAMPLES = 52  # 7 batches of 8, the last one short; 3 steps where three batches make one


class Augmented(Dataset):
    """Augments with random numbers of Python, NumPy and torch, drawn as each sample is read."""

    def __init__(self, n, seed):
        self.x, self.y = data(n, seed)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        moved = self.x[index] * random.uniform(0.5, 1.5) + float(np.random.normal(0, 0.1)) + 0.1 * torch.randn(4)
        return moved, self.y[index]


def fit_augmented(distiller, **options):
    """Training and validation samples are both augmented: outer batches draw random numbers too."""
    train = DataLoader(Augmented(SAMPLES, 0), 8, shuffle=True)
    distiller.fit(train, DataLoader(Augmented(12, 7), 6), epochs=2, **options)


METHODS = {
    "kd": lambda: "kd",
    "tgeo": lambda: TGeoKD(update_interval=2),
    "tgeo holdout": lambda: TGeoKD(outer="holdout", hypergradient="forward", update_interval=1, outer_batch_size=5),
    "tgeo train": lambda: TGeoKD(outer="train", encoding="vector", update_interval=1),
    "rw": lambda: "rw",
    "mwnet": lambda: "mwnet",
    "mwnet union": lambda: MetaWeightNet(outer="union"),
    "anl": lambda: "anl",
}


@pytest.mark.parametrize(("accumulate", "step"), [(1, 3), (1, 10), (3, 1), (3, 5)])
@pytest.mark.parametrize("name", METHODS)
def test_augmented_samples_and_outer_batches_continue_bit_for_bit(tmp_path, name, accumulate, step):
    def make(callback):
        return distiller_of(METHODS[name](), callback, accumulate=accumulate)

    cut_off_and_resumed(tmp_path, make, step, fit_augmented, save_and_crash)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("generator_seed", [None, 3])
def test_samples_that_worker_processes_augment_continue_bit_for_bit(tmp_path, generator_seed):
    def fit(distiller, **options):
        generator = None if generator_seed is None else torch.Generator().manual_seed(generator_seed)
        train = DataLoader(Augmented(SAMPLES, 0), 8, shuffle=True, num_workers=2, generator=generator)
        distiller.fit(train, validation_loader(), epochs=2, **options)

    cut_off_and_resumed(tmp_path, lambda callback: distiller_of("kd", callback), 10, fit, save_and_crash)


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 1])
@pytest.mark.parametrize("generator_seed", [None, 3])
def test_no_step_is_repeated_and_none_is_left_out(tmp_path, step, generator_seed):
    recorder = Recorder()

    def fit(distiller, **options):
        distiller.fit(train_loader(generator_seed), validation_loader(), epochs=2, **options)

    with pytest.raises(CutOff):
        fit(distiller_of("kd", At(step, save_and_crash)), out=tmp_path)
    fit(distiller_of("kd", recorder), out=tmp_path, resume=True)
    assert recorder.log.count("step") == 2 * STEPS - step
    assert recorder.log.count("epoch") == 2 if step <= STEPS else 1
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1]


def test_a_scheduler_by_step_and_clipping_continue(tmp_path):
    def make(callback):
        return distiller_of(
            TGeoKD(update_interval=2), callback, scheduler_every="step", clip_norm=0.5,
            scheduler=lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=EPOCHS * 4 + 1),
        )  # fmt: skip

    cut_off_and_resumed(tmp_path, make, 6, act=save_and_crash)


def test_a_run_that_is_interrupted_twice_in_the_same_epoch(tmp_path):
    def make(callback):
        return distiller_of(TGeoKD(update_interval=1, hypergradient="forward"), callback)

    for step, resume in ((8, False), (10, True), (11, True)):  # epochs of 7 + 2 steps
        with pytest.raises(CutOff):
            fit_augmented(make(At(step, save_and_crash)), out=tmp_path / "cut", resume=resume)
        random.random()
        np.random.rand()
    resumed_and_whole(tmp_path, lambda: make(None), fit_augmented)


@dataclass(frozen=True)
class Noise:
    """A random transform with views: the noise of a sample follows from its id and the number of the view."""

    random = True
    scale: float = 0.3

    def __call__(self, inputs):
        return inputs + self.scale * torch.randn_like(inputs)

    def view(self, inputs, ids, view):
        noise = [torch.randn(4, generator=torch.Generator().manual_seed(int(name) * 100 + view)) for name in ids]
        return inputs + self.scale * torch.stack(noise)


def test_a_cached_teacher_with_views_continues_without_queries(tmp_path):
    teachers = []

    def make(callback):
        torch.manual_seed(2)
        teachers.append(CountedTeacher(4, 3))
        return distiller_of("kd", callback, teacher=teachers[-1], cache_teacher=TeacherCacheOptions(views=2))

    def fit(distiller, **options):
        train = DataLoader(ArrayDataset(*data(20), torch.arange(20), Noise()), 8, shuffle=True)
        distiller.fit(train, validation_loader(), epochs=3, **options)

    cut_off_and_resumed(tmp_path, make, STEPS + 2, fit, save_and_crash)
    first, resumed, whole = (teacher.calls for teacher in teachers)
    assert first == whole > 0
    assert resumed == 0


# ---- save_checkpoint by a callback


class SaveAt(Callback):
    """Writes a checkpoint in one hook."""

    def __init__(self, hook):
        def save(distiller, *_):
            distiller.save_checkpoint()

        setattr(self, hook, save)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end"])
def test_a_checkpoint_written_in_any_hook_resumes_the_same_run(tmp_path, hook):
    """The crash is in the third epoch, after the checkpoints of that hook; the loop writes one after the first epoch."""

    def fit_rarely(distiller, **options):
        fit(distiller, checkpoint_every=100, patience=50, **options)

    def make(*callbacks):
        return distiller_of("anl", callbacks=callbacks, scheduler=lambda optimizer: StepLR(optimizer, 1, 0.5))

    with contextlib.suppress(CutOff):
        end = [] if hook == "on_fit_end" else [At(2 * STEPS + 2, crash)]
        fit_rarely(make(SaveAt(hook), *end), out=tmp_path / "cut")
    resumed_and_whole(tmp_path, make, fit_rarely)


def test_saving_needs_the_folder_of_a_run(tmp_path):
    with refused("fit("):
        distiller_of().save_checkpoint()
    with refused("out="):
        fit(distiller_of("kd", SaveAt("on_step_end")), epochs=1)


def test_saving_does_not_change_the_run(tmp_path):
    saving, plain = distiller_of("tgeo", SaveAt("on_step_end")), distiller_of("tgeo")
    fit(saving, out=tmp_path)
    fit(plain)
    assert_same_end(saving, plain)
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 2  # the last two


def test_a_loader_that_became_shorter_is_refused(tmp_path):
    batches = [*train_loader()]

    def fit_list(batches, distiller, **options):
        distiller.fit(Unsized(batches), validation_loader(), epochs=2, **options)

    with pytest.raises(CutOff):
        fit_list(batches, distiller_of("kd", At(3, save_and_crash)), out=tmp_path)
    before = contents(tmp_path / "checkpoints")
    with refused("training loader", "2 batches", 3):
        fit_list(batches[:2], distiller_of("kd"), out=tmp_path, resume=True)
    assert contents(tmp_path / "checkpoints") == before


# ---- loaders that know, or do not know, where they were


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.process, pytest.mark.slow])])
@pytest.mark.parametrize("step", [3, 7, 10])
@pytest.mark.parametrize("generator_seed", [None, 3])
def test_a_stateful_loader_continues_where_it_was(tmp_path, step, workers, generator_seed):
    """Its state holds the order; random numbers that worker processes draw are not part of it."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def fit(distiller, **options):
        torch.manual_seed(12 if options.get("resume") else 11)  # the loader draws the seed of its order
        generator = None if generator_seed is None else torch.Generator().manual_seed(generator_seed)
        dataset = TensorDataset(*data(SAMPLES)) if workers else Augmented(SAMPLES, 0)
        loader = stateful.StatefulDataLoader(dataset, 8, shuffle=True, num_workers=workers, generator=generator)
        distiller.fit(loader, validation_loader(), epochs=2, **options)

    method = TGeoKD(outer="holdout", update_interval=2)
    cut_off_and_resumed(tmp_path, lambda callback: distiller_of(method, callback), step, fit, save_and_crash)


def test_a_stateful_loader_does_not_read_its_samples_again(tmp_path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    read = []

    class Counted(Augmented):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    def fit(distiller, **options):
        loader = stateful.StatefulDataLoader(Counted(SAMPLES, 0), 8, shuffle=True)
        distiller.fit(loader, epochs=1, **options)

    with pytest.raises(CutOff):
        fit(distiller_of("ce", At(5, save_and_crash)), out=tmp_path)
    read.clear()
    fit(distiller_of("ce"), out=tmp_path, resume=True)
    assert len(read) == SAMPLES - 5 * 8


class AnotherOrder:
    """Yields its batches in an order that no random state determines."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        shift = self.passes % len(self.batches)
        yield from self.batches[shift:] + self.batches[:shift]


@pytest.mark.parametrize(("step", "passes"), [(1, 1), (2 * STEPS + 2, 2)])
def test_an_order_that_cannot_be_repeated_is_noticed_and_the_epoch_begins_anew(tmp_path, step, passes, caplog):
    """It ends like a run that was cut off at the start of the epoch, where the loader yields the same from there on."""
    begun = (step - 1) // STEPS * STEPS  # steps before the epoch

    def fit(distiller, passes, **options):
        loader = AnotherOrder([*train_loader(generator_seed=1)])
        loader.passes = passes
        distiller.fit(loader, validation_loader(), epochs=4, **options)

    for name in ("a", "b"):
        with pytest.raises(CutOff):
            fit(distiller_of("kd", At(step, save_and_crash)), 0, out=tmp_path / name)
    for path in (tmp_path / "b" / "checkpoints").glob("step-*-mid.pt"):
        path.unlink()
    noticed, anew = distiller_of("kd"), distiller_of("kd")
    fit(noticed, passes, out=tmp_path / "a", resume=True)
    assert len([message for message in caplog.messages if "StatefulDataLoader" in message]) == 1
    fit(anew, passes + 1, out=tmp_path / "b", resume=True)  # the other one has used a pass in vain
    assert anew.resumed_at == begun // STEPS
    assert noticed.step == 4 * STEPS
    assert_same_end(noticed, anew)
