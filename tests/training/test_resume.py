"""A run that is cut off and resumed must end like one that was not.

Run as a script (``python test_resume.py FOLDER STEP``), this trains into FOLDER and waits after step STEP to be killed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from tgeokd import AdaptiveKD, AnnealingKD, Distiller, TGeoKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.loaders import shuffling
from tgeokd.teachers import StoredPredictions
from tgeokd.training.callbacks import Callback
from tgeokd.utils.errors import InputError

EPOCHS = 5


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, generator=generator)
    x[torch.arange(n), y] += 1.0
    return TensorDataset(x, y)


def train_loader(generator_seed=None, **options):
    generator = None if generator_seed is None else torch.Generator().manual_seed(generator_seed)
    return DataLoader(data(20, 0), 8, **{"shuffle": True, "generator": generator, **options})


def held_out():
    return DataLoader(data(12, 7), 6)


class CutOff(Exception):
    """Stands for a crash."""


class At(Callback):
    """Does something after a step, counted over the whole run."""

    def __init__(self, step=None, act=None):
        self.step, self.act = step, act

    def on_step_end(self, distiller):
        if self.act is not None and distiller.step == self.step:
            self.act()

    @staticmethod
    def crash():
        raise CutOff


def distiller_of(method="kd", callback=None, *, scheduler=None, optimizer="sgd", lr=0.1, teacher=None, **options):
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    teacher = nn.Linear(4, 3) if teacher is None else teacher
    parameters = student.parameters()
    optimizer = SGD(parameters, lr, momentum=0.9) if optimizer == "sgd" else AdamW(parameters, 0.01)
    settings = {"accelerator": "cpu", "progress": False, "callbacks": [callback or At()], **options}
    if scheduler is not None:
        settings["scheduler"] = scheduler(optimizer)
    return Distiller(student, teacher, method, optimizer, **settings)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def flat(state, prefix=""):
    """Every leaf of a nested state, by path."""
    if isinstance(state, dict):
        pairs = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    else:
        return {prefix: state}
    leaves = {}
    for key, value in pairs:
        leaves |= flat(value, f"{prefix}/{key}")
    return leaves


def assert_same_end(resumed, whole):
    """Student, optimizer, scheduler and method (omega among them) are equal bit for bit."""
    for part in ("student", "optimizer", "scheduler", "method"):
        states = [getattr(d, part).state_dict() if getattr(d, part) is not None else {} for d in (resumed, whole)]
        ours, theirs = map(flat, states)
        assert ours.keys() == theirs.keys()
        for path, value in ours.items():
            same = torch.equal(value, theirs[path]) if isinstance(value, torch.Tensor) else value == theirs[path]
            assert same, f"{part}{path}"


def cut_off_and_resumed(tmp_path, make, fit, step):
    """The distiller of a resumed run and of one in one piece; ``make(callback)`` and ``fit(distiller, **options)``."""
    with pytest.raises(CutOff):
        fit(make(At(step, At.crash)), out=tmp_path / "cut")
    torch.rand(17)  # another process has another random state
    random.random()
    resumed, whole = make(None), make(None)
    fit(resumed, out=tmp_path / "cut", resume=True)
    fit(whole, out=tmp_path / "whole")
    return resumed, whole


# ---- kill -9


def make_killed(callback=None):
    def scheduler(optimizer):
        return CosineAnnealingLR(optimizer, 60)

    method = TGeoKD(outer="union", every=2, outer_batch_size=5)
    return distiller_of(method, callback, scheduler=scheduler, scheduler_every="step", clip_norm=1.0)


def fit_killed(distiller, **options):
    return distiller.fit(train_loader(generator_seed=3), held_out(), epochs=EPOCHS, seed=2, **options)


def wait_to_be_killed():
    sys.stdout.write("waiting\n")
    sys.stdout.flush()
    time.sleep(120)
    raise SystemExit("nobody killed this run")


def test_a_run_killed_with_signal_9_ends_like_one_that_was_not(tmp_path):
    step = 3 * 4 + 2  # in the middle of the fourth epoch of 20 + 12 samples in batches of 8
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "killed"), str(step)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "waiting\n"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -9
    killed_at = metrics(tmp_path / "killed")
    assert [record["epoch"] for record in killed_at] == [0, 1, 2]
    assert not (tmp_path / "killed" / "student.safetensors").exists()

    resumed, whole = make_killed(), make_killed()
    fit_killed(resumed, out=tmp_path / "killed", resume=True)
    fit_killed(whole, out=tmp_path / "whole")
    assert_same_end(resumed, whole)
    assert resumed.method.network is not None
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert metrics(tmp_path / "killed")[:3] == killed_at
    assert [record["epoch"] for record in metrics(tmp_path / "killed")] == list(range(EPOCHS))
    weights = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert resumed.step == whole.step == EPOCHS * 4
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        "last.ckpt",
        "metrics.jsonl",
        "student.safetensors",
    ]


# ---- everything that has a state

METHODS = {
    "ce": lambda: "ce",
    "kd": lambda: "kd",
    "anl": lambda: AnnealingKD(steps=4),
    "anl regression": lambda: AnnealingKD(form="regression", phase_one=0.8),
    "ada": lambda: AdaptiveKD(level="class"),
    "wls": lambda: "wls",
    "rw": lambda: "rw",
    "tgeo": lambda: "tgeo",
    "tgeo train": lambda: TGeoKD(outer="train", encoding="vector", hypergradient="last_layer", every=3),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", [3 * 3 + 1, 3 + 2])
def test_every_method_resumes_bit_for_bit(tmp_path, name, step):
    def fit(distiller, **options):
        distiller.fit(train_loader(), held_out(), epochs=EPOCHS, **options)

    resumed, whole = cut_off_and_resumed(tmp_path, lambda c: distiller_of(METHODS[name](), c), fit, step)
    assert_same_end(resumed, whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


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

    def fit(distiller, **options):
        distiller.fit(train_loader(), held_out(), epochs=EPOCHS, **options)

    resumed, whole = cut_off_and_resumed(tmp_path, make, fit, 3 * 2 + 1)
    assert_same_end(resumed, whole)
    assert len(set(whole.history["lr"])) > 1
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_the_loaders_own_generator_goes_on(tmp_path):
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
        distiller.fit(loaders[-1], held_out(), epochs=EPOCHS, **options)

    def make(callback):
        return distiller_of("kd", Seen(*(() if callback is None else (callback.step, callback.act))))

    resumed, whole = cut_off_and_resumed(tmp_path, make, fit, 3 * 2 + 1)
    assert_same_end(resumed, whole)
    assert torch.equal(torch.cat(seen[resumed]), torch.cat(seen[whole][3 * 2 :]))
    assert torch.equal(loaders[1].generator.get_state(), loaders[2].generator.get_state())


@pytest.mark.parametrize("epoch", [1, 5, 7, 9, 10])
def test_early_stopping_goes_on_counting(tmp_path, epoch):
    def make(callback):
        return distiller_of("ce", callback, lr=0.2)

    def fit(distiller, **options):
        distiller.fit(train_loader(), held_out(), epochs=40, patience=4, **options)

    resumed, whole = cut_off_and_resumed(tmp_path, make, fit, 3 * epoch + 1)
    losses = whole.history["val_loss"]
    best = losses.index(min(losses))
    assert 5 < best < 9
    assert len(losses) == best + 5  # so the cuts lie before, at and after the best epoch
    assert_same_end(resumed, whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_checkpoints_further_apart_repeat_what_came_after_the_last(tmp_path):
    def fit(distiller, **options):
        distiller.fit(train_loader(), held_out(), epochs=EPOCHS, checkpoint_every=2, **options)

    def make(callback):
        return distiller_of("kd", callback)

    with pytest.raises(CutOff):
        fit(make(At(3 * 3 + 1, At.crash)), out=tmp_path / "cut")
    assert len(metrics(tmp_path / "cut")) == 3
    resumed, whole = make(None), make(None)
    fit(resumed, out=tmp_path / "cut", resume=True)
    fit(whole, out=tmp_path / "whole")
    assert_same_end(resumed, whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_line_written_just_before_the_crash_is_not_there_twice(tmp_path):
    distiller_of().fit(train_loader(), held_out(), epochs=2, out=tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_loss": 9}\n{"epoch": 3, "tra')
    distiller_of().fit(train_loader(), held_out(), epochs=4, out=tmp_path, resume=True)
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1, 2, 3]
    assert metrics(tmp_path)[2]["train_loss"] != 9


# ---- runs that are over


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = distiller_of("kd")
    first.fit(train_loader(), held_out(), epochs=3, out=tmp_path)
    before = metrics(tmp_path)
    again = distiller_of("kd")
    history = again.fit(train_loader(), held_out(), epochs=3, out=tmp_path, resume=True)
    assert len(history) == 3
    assert metrics(tmp_path) == before
    assert_same_end(again, first)


def test_a_finished_run_can_be_made_longer(tmp_path):
    distiller_of("kd").fit(train_loader(), held_out(), epochs=2, out=tmp_path / "a")
    longer, whole = distiller_of("kd"), distiller_of("kd")
    longer.fit(train_loader(), held_out(), epochs=EPOCHS, out=tmp_path / "a", resume=True)
    whole.fit(train_loader(), held_out(), epochs=EPOCHS, out=tmp_path / "b")
    assert_same_end(longer, whole)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_run_that_stopped_early_stays_stopped_with_its_best_weights(tmp_path):
    first, again = distiller_of("ce", lr=1.5), distiller_of("ce", lr=1.5)
    first.fit(train_loader(), held_out(), epochs=40, patience=3, out=tmp_path)
    history = again.fit(train_loader(), held_out(), epochs=40, patience=3, out=tmp_path, resume=True)
    assert len(history) == len(first.history) < 40
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name])


# ---- what is refused


def test_another_method_is_refused_and_the_run_left_alone(tmp_path):
    distiller_of("kd").fit(train_loader(), held_out(), epochs=2, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="the run to resume used method 'kd', not 'tgeo'"):
        distiller_of("tgeo").fit(train_loader(), held_out(), epochs=4, out=tmp_path, resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_nothing_to_resume_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint to resume from"):
        distiller_of().fit(train_loader(), epochs=1, out=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


# ---- known gaps


def test_a_run_with_a_progress_bar_can_be_resumed_without(tmp_path, capsys):
    distiller_of(progress=True).fit(train_loader(), held_out(), epochs=1, out=tmp_path)
    distiller_of(progress=False).fit(train_loader(), held_out(), epochs=2, out=tmp_path, resume=True)


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_the_step_count_of_a_loader_without_length_goes_on(tmp_path):
    def fit(distiller, **options):
        distiller.fit(Unsized(train_loader()), held_out(), epochs=EPOCHS, **options)

    def make(callback):
        return distiller_of(TGeoKD(outer="holdout", every=2, hypergradient="last_layer"), callback)

    resumed, whole = cut_off_and_resumed(tmp_path, make, fit, 3 * 3 + 1)
    assert resumed.step == whole.step
    assert_same_end(resumed, whole)


def test_a_samplers_own_generator_goes_on(tmp_path):
    def fit(distiller, **options):
        sampler = RandomSampler(range(20), generator=torch.Generator().manual_seed(3))
        distiller.fit(train_loader(shuffle=False, sampler=sampler), held_out(), epochs=EPOCHS, **options)

    resumed, whole = cut_off_and_resumed(tmp_path, lambda c: distiller_of("kd", c), fit, 3 * 3 + 1)
    assert_same_end(resumed, whole)


class InBlocks(ArrayDataset):
    """Samples with ids that a loader shuffles by blocks."""

    block_size = 3

    def __init__(self, n, seed):
        super().__init__(*data(n, seed).tensors, ids=torch.arange(n) + 100 * seed)


@pytest.mark.parametrize("generator_seed", [None, 3])
@pytest.mark.parametrize("outer", ["holdout", "union"])
def test_a_shuffle_by_blocks_and_stored_predictions_go_on(tmp_path, generator_seed, outer):
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
    resumed, whole = cut_off_and_resumed(tmp_path, make, fit, steps * 3 + 1)
    assert resumed.step == whole.step == steps * EPOCHS
    assert_same_end(resumed, whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


class Augmented(Dataset):
    """Augments with Python's own random numbers, which the seed of the run covers."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x, y = data(20, 0)[index]
        return x * random.uniform(0.5, 1.5), y


def test_pythons_random_numbers_go_on(tmp_path):
    def fit(distiller, **options):
        distiller.fit(DataLoader(Augmented(), 8), held_out(), epochs=EPOCHS, **options)

    resumed, whole = cut_off_and_resumed(tmp_path, lambda c: distiller_of("kd", c), fit, 3 * 3 + 1)
    assert_same_end(resumed, whole)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit_killed(make_killed(At(int(sys.argv[2]), wait_to_be_killed)), out=sys.argv[1])
