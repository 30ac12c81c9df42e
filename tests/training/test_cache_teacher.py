"""Training on what a teacher said once: the same as asking it in every step, about the very pixels the student sees."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from tgeokd import Distiller, TGeoKD, VanillaKD
from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.data.loaders import ArrayDataset
from tgeokd.methods import METHODS, Method, build_method
from tgeokd.teachers import StoredPredictions, TeacherCache, TeacherCacheOptions
from tgeokd.training.callbacks import Callback
from tgeokd.utils.errors import InputError

NORMAL = ((0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
RANDOM, PLAIN = TrainTransform(*NORMAL, padding=2), EvalTransform(*NORMAL)
FP32 = TeacherCacheOptions(dtype="fp32")
N, HELD_OUT, C = 30, 12, 3


def images(n, first, transform, seed=0):
    generator = torch.Generator().manual_seed(seed + first)
    x = torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return ArrayDataset(x, torch.arange(n) % C, torch.arange(n) * 3 + first, transform)


def train(transform=RANDOM):
    return images(N, 0, transform)


def held_out():
    return images(HELD_OUT, 1000, PLAIN)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, C)
    )


class Counting(nn.Module):
    """A teacher that counts the samples it is asked about."""

    def __init__(self):
        super().__init__()
        self.net = network(1)
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        return self.net(x)


def distiller_of(method="kd", cache=FP32, teacher=None, **options):
    student = network(2)
    optimizer = SGD(student.parameters(), 0.05, momentum=0.9)
    teacher = network(1) if teacher is None else teacher
    settings = {"accelerator": "cpu", "progress": False, "cache_teacher": cache, **options}
    return Distiller(student, teacher, method, optimizer, **settings)


def fit(distiller, dataset, epochs=5, **options):
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(dataset, 8, shuffle=True, generator=generator, **options.pop("loader", {}))
    distiller.fit(loader, DataLoader(held_out(), 6), epochs=epochs, seed=3, **options)
    return distiller


def assert_same_weights(first, second, tolerance=0.0):
    theirs = second.student.state_dict()
    for name, value in first.student.state_dict().items():
        assert (value.double() - theirs[name].double()).abs().max() <= tolerance, name


class Watched(Method):
    """Plain distillation that keeps the inputs and the teacher's logits of every step."""

    name = "watched"

    def __init__(self):
        self.steps = []
        self._inputs = None

    def see(self, module, arguments):
        self._inputs = arguments[0].detach().clone()

    def alpha(self, signals):
        self.steps.append((self._inputs, signals.teacher.clone()))
        return torch.full((len(signals.target),), 0.5)


# ---- the teacher speaks of what the student sees


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("parts", ["whole", "subset", "concatenation"])
def test_cached_logits_are_the_teachers_on_the_pixels_of_the_step_in_every_view(tmp_path, parts, workers):
    if workers and parts != "whole":
        pytest.skip("worker processes take time to start; once is enough")
    datasets = {
        "whole": train(),
        "subset": Subset(train(), [3, 1, 20, 7, 9, 28, 11, 12, 4, 5]),
        "concatenation": ConcatDataset([train(), images(4, 2000, RANDOM)]),
    }
    method, teacher = Watched(), network(1)
    distiller = distiller_of(method, TeacherCacheOptions(views=3, dtype="fp32"), teacher)
    distiller.student.register_forward_pre_hook(method.see)
    fit(distiller, datasets[parts], epochs=7, loader={"num_workers": workers})

    assert len(method.steps) == 7 * -(-len(datasets[parts]) // 8)
    for pixels, logits in method.steps:
        torch.testing.assert_close(logits, teacher(pixels), rtol=1e-5, atol=1e-5)
    # a view is another one in each epoch of a round, and the same one in the next round
    epochs = [torch.cat([pixels for pixels, _ in steps]) for steps in split(method.steps, 7)]
    as_sets = [{row.numpy().tobytes() for row in pixels} for pixels in epochs]
    assert as_sets[0] == as_sets[3] == as_sets[6]
    assert as_sets[1] == as_sets[4]
    assert len(as_sets[0] & as_sets[1]) < len(as_sets[0]) / 2


def split(steps, epochs):
    each = len(steps) // epochs
    return [steps[i * each : (i + 1) * each] for i in range(epochs)]


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].needs_teacher])
@pytest.mark.parametrize("augmented", [True, False])
def test_a_cached_and_a_computed_training_end_with_the_same_weights(method, augmented):
    dataset = train(RANDOM if augmented else PLAIN)
    teacher = Counting()
    cached = fit(distiller_of(method, teacher=teacher), dataset)
    computed = fit(distiller_of(method, False), dataset.with_views(4) if augmented else dataset)
    # the teacher is asked in other batches, whose sums may differ in the last bit
    assert_same_weights(cached, computed, 1e-6)
    asked = N * (4 if augmented else 1) + (HELD_OUT if METHODS[method].outer_needs_teacher else 0)
    assert asked < teacher.asked <= asked + 8 + 2 * N  # and the first batches, for checks


@pytest.mark.parametrize("outer", ["holdout", "union", "train"])
@pytest.mark.parametrize("method", ["tgeo", "rw"])
def test_each_source_of_outer_batches_has_its_own_answers(method, outer):
    cached = fit(distiller_of(build_method(method, outer=outer)), train(), epochs=3)
    computed = fit(distiller_of(build_method(method, outer=outer), False), train().with_views(3), epochs=3)
    assert_same_weights(cached, computed, 1e-6)


def test_where_the_arithmetic_is_exact_the_weights_are_equal_bit_for_bit():
    torch.manual_seed(0)
    x = torch.randint(-4, 5, (N, 5)).float()
    dataset = ArrayDataset(x, torch.arange(N) % C, torch.randperm(500)[:N])
    teacher = nn.Linear(5, C)
    with torch.no_grad():
        teacher.weight.copy_(torch.randint(-3, 4, (C, 5)))
        teacher.bias.zero_()
    ends = []
    for cache in (FP32, TeacherCacheOptions(dtype="fp16"), False):
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C))
        optimizer = SGD(student.parameters(), 0.1)
        distiller = Distiller(
            student, teacher, "tgeo", optimizer, accelerator="cpu", progress=False, cache_teacher=cache
        )
        distiller.fit(DataLoader(dataset, 8, shuffle=True), DataLoader(dataset, 8), epochs=3)
        ends.append(distiller)
    assert_same_weights(ends[0], ends[2])
    assert_same_weights(ends[1], ends[2])


def test_an_oversampled_training_set_is_asked_about_once_a_sample():
    whole = train(PLAIN)
    rows = [*range(N), *range(10), 3, 3]
    teacher = Counting()
    cached = fit(distiller_of(teacher=teacher), whole.subset(rows), epochs=2)
    assert teacher.asked <= N + 8
    assert_same_weights(cached, fit(distiller_of(cache=False), whole.subset(rows), epochs=2), 1e-6)


def test_ratios_after_training_come_from_the_store_too(tmp_path):
    teacher = Counting()
    distiller = fit(distiller_of(TGeoKD(outer="train"), teacher=teacher), train(), epochs=2, out=tmp_path / "run")
    asked = teacher.asked
    ratios = distiller.fusion_ratios(DataLoader(train(), 7))
    assert ratios.shape == (N,)
    assert teacher.asked == asked
    distiller.fusion_ratios(DataLoader(held_out(), 7))
    assert teacher.asked == asked + HELD_OUT


# ---- where it is kept


def test_it_is_kept_in_the_runs_folder_and_taken_up_by_the_resumed_run(tmp_path):
    class CutOff(Exception):
        pass

    class Crash(Callback):
        def __init__(self, step):
            self.step = step

        def on_step_end(self, distiller):
            if distiller.step == self.step:
                raise CutOff

    teacher = Counting()
    whole = fit(distiller_of("tgeo", teacher=teacher), train(), out=tmp_path / "whole")
    with pytest.raises(CutOff):
        fit(distiller_of("tgeo", teacher=teacher, callbacks=[Crash(10)]), train(), out=tmp_path / "cut")
    assert TeacherCache(tmp_path / "cut" / "teacher-cache" / "train").views == 4
    teacher.asked = 0
    resumed = fit(distiller_of("tgeo", teacher=teacher), train(), out=tmp_path / "cut", resume=True)
    assert teacher.asked <= 8  # the first batch, for checks
    assert_same_weights(resumed, whole)


def test_without_a_folder_it_is_removed_at_the_end_however_that_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit(distiller_of(), train())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="already holds a run"):
        fit(distiller_of(), train(), out=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_other_methods_share_a_folder_and_the_teacher_is_not_asked_again(tmp_path):
    shared = TeacherCacheOptions(folder=str(tmp_path / "shared"))
    teacher = Counting()
    distiller = distiller_of("kd", shared, teacher)
    everything = ArrayDataset.join(train(), held_out())
    distiller.store_teacher(DataLoader(everything, 10), DataLoader(held_out(), 6), folder=shared.folder, epochs=9)
    assert teacher.asked >= (N + HELD_OUT) * 4 + HELD_OUT
    asked = teacher.asked
    for method in ("kd", "ada", "tgeo", build_method("tgeo", outer="holdout"), "rw"):
        fit(distiller_of(method, shared, teacher), train(), epochs=2)
    fit(distiller_of("kd", shared, teacher), everything, epochs=2)
    assert teacher.asked <= asked + 6 * 8  # the first batch of each, for checks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher", "other teacher weights"),
        ("inputs", "other samples: the inputs of sample 6 have changed"),
        ("ids", "other samples: it holds 30 samples, and no sample 1"),
        ("augmentation", "other augmentation: TrainTransform.*padding=2.* then, TrainTransform.*padding=1.* now"),
        ("preprocessing", "other preprocessing"),
        ("views", "other views: 4 then, 2 now"),
        ("precision", "other precision: 32-true then, bf16-mixed now"),
    ],
)
def test_a_stale_cache_is_refused_with_what_has_changed(tmp_path, change, message):
    folder = str(tmp_path / "cache")
    fit(distiller_of(cache=TeacherCacheOptions(folder=folder)), train())
    dataset, teacher, options, settings = train(), network(1), TeacherCacheOptions(folder=folder), {}
    if change == "teacher":
        teacher = network(9)
    elif change == "inputs":
        dataset.inputs[2, 0, 0, 0] ^= 1
    elif change == "ids":
        dataset.ids[0] += 1
    elif change == "augmentation":
        dataset = train(TrainTransform(*NORMAL, padding=1))
    elif change == "preprocessing":
        dataset = train(PLAIN)
    elif change == "views":
        options = TeacherCacheOptions(folder=folder, views=2)
    else:
        settings = {"precision": "bf16-mixed"}
    with pytest.raises(InputError, match=f"is stale, made with {message}"):
        fit(distiller_of(cache=options, teacher=teacher, **settings), dataset)


# ---- what cannot be cached


class Jitter(Dataset):
    """A data set of the user's own that augments at random, with ids."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.randn(3, 6, 6), i % C, i


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (TensorDataset(torch.randn(N, 3, 6, 6), torch.arange(N) % C), "found by sample id: loaders must yield"),
        (Jitter(), "other inputs each time.*use ArrayDataset"),
        (images(N, 0, lambda x: x + torch.rand(x.shape)), "other inputs each time.*use ArrayDataset"),
    ],
)
def test_what_the_student_would_not_see_is_refused_with_the_way_out(dataset, message):
    with pytest.raises(InputError, match=f"{message}.*cache_teacher=False"):
        fit(distiller_of(), dataset)


def test_a_random_transform_without_views_is_refused():
    class Noise:
        random = True

        def __call__(self, x):
            return x.float() + torch.rand(x.shape)

    with pytest.raises(InputError, match="view"):
        fit(distiller_of(), train(Noise()))


def test_two_samples_with_one_id_are_refused():
    dataset = train(PLAIN)
    dataset.ids[4] = dataset.ids[3]
    with pytest.raises(InputError, match="two samples with different inputs have the id 9"):
        fit(distiller_of(), dataset)


class Plain(Dataset):
    """A data set of the user's own without a fingerprint; ids only in its samples."""

    def __init__(self):
        self.whole = train(PLAIN)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.whole[i]


@pytest.mark.parametrize("kind", ["data set", "teacher", "transform", "list"])
def test_what_cannot_be_recognised_later_is_kept_for_one_training(tmp_path, kind, caplog):
    module = network(1).eval()
    dataset = {"data set": Plain(), "transform": train(lambda x: PLAIN(x))}.get(kind, train(PLAIN))
    teacher = (lambda x: module(x)) if kind == "teacher" else network(1)

    def go(cache, **options):
        distiller = distiller_of(TGeoKD(outer="holdout"), cache, teacher)
        if kind != "list":
            return fit(distiller, dataset, **options)
        batches = list(DataLoader(dataset, 8))
        distiller.fit(batches, DataLoader(held_out(), 6), epochs=5, seed=3, **options)
        return distiller

    with caplog.at_level(logging.INFO, "tgeokd"):
        cached = go(FP32, out=tmp_path / "run")
    assert "kept for this training only" in caplog.text
    assert not (tmp_path / "run" / "teacher-cache").exists()
    assert_same_weights(cached, go(False), 1e-6)
    with pytest.raises(InputError, match=r"must be recognised later, and .*; set no folder"):
        go(TeacherCacheOptions(folder=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_probabilities_and_logits_of_one_network_are_not_confused(tmp_path):
    options = TeacherCacheOptions(folder=str(tmp_path / "cache"), dtype="fp32")
    teacher = nn.Sequential(network(1), nn.Softmax(dim=-1))
    cached = fit(distiller_of(cache=options, teacher=teacher, teacher_probs=True), train(PLAIN))
    computed = fit(distiller_of(cache=False, teacher=teacher, teacher_probs=True), train(PLAIN))
    assert_same_weights(cached, computed, 1e-6)
    with pytest.raises(InputError, match="other teacher weights"):
        fit(distiller_of(cache=options, teacher=teacher), train(PLAIN))


def test_stored_predictions_are_not_stored_again(caplog):
    stored = StoredPredictions(torch.randn(N, C), train().ids)
    with caplog.at_level(logging.INFO, "tgeokd"):
        distiller = distiller_of(VanillaKD(), True, stored)
    assert "stored predictions already" in caplog.text
    fit(distiller, train(), epochs=1)


def test_a_random_split_of_an_augmenting_data_set_has_views_and_the_users_own_data_set_keeps_its_draws():
    whole = train()
    part, _ = random_split(whole, [20, 10], torch.Generator().manual_seed(0))
    fit(distiller_of(), part, epochs=2)
    assert whole.views is None
    first, second = (next(iter(DataLoader(whole, N)))[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views of the teacher cache must be >= 1, not 0"),
        ({"top_k": 0}, "top_k of the teacher cache must be >= 1, not 0"),
        ({"dtype": "int8"}, "dtype of the teacher cache must be one of fp16, bf16, fp32, not 'int8'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TeacherCacheOptions(**options)


def test_views_of_the_loader_and_of_the_options_must_agree():
    with pytest.raises(InputError, match="has 3 views and the teacher cache asks for 2"):
        fit(distiller_of(cache=TeacherCacheOptions(views=2)), train().with_views(3))
