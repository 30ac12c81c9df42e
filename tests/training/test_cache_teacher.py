"""Training on stored logits: the same as querying the teacher in every step, for the inputs that the student sees."""

from __future__ import annotations

import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from small_training import ratio_alone
from torch import nn
from torch.optim import SGD
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from tgeokd import Distiller, TGeoKD, VanillaKD
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.augment import EvalTransform, TrainTransform
from tgeokd.methods import METHODS, Method, build_method
from tgeokd.teachers import ProbaTeacher, StoredPredictions, TeacherCache, TeacherCacheOptions
from tgeokd.training.callbacks import Callback
from tgeokd.utils.errors import InputError

NORMAL = ((0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
RANDOM, PLAIN = TrainTransform(*NORMAL, padding=2), EvalTransform(*NORMAL)
FP32 = TeacherCacheOptions(dtype="fp32")
N, VALIDATION, C = 30, 12, 3


def images(n, first, transform, seed=0):
    generator = torch.Generator().manual_seed(seed + first)
    x = torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return ArrayDataset(x, torch.arange(n) % C, torch.arange(n) * 3 + first, transform)


def train(transform=RANDOM):
    return images(N, 0, transform)


def validation():
    return images(VALIDATION, 1000, PLAIN)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, C)
    )


class Counting(nn.Module):
    """A teacher that counts the samples it is queried for."""

    def __init__(self):
        super().__init__()
        self.net = network(1)
        self.queried = 0

    def forward(self, x):
        self.queried += len(x)
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
    distiller.fit(loader, DataLoader(validation(), 6), epochs=epochs, seed=3, **options)
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


# ---- stored logits belong to the inputs of the student


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("whole", 0),
        pytest.param("whole", 2, marks=[pytest.mark.process, pytest.mark.slow]),
        ("subset", 0),
        ("concatenation", 0),
    ],
)
def test_stored_logits_are_the_teachers_for_the_inputs_of_each_step_in_every_view(kind, workers):
    dataset = {
        "whole": train(),
        "subset": Subset(train(), [3, 1, 20, 7, 9, 28, 11, 12, 4, 5]),
        "concatenation": ConcatDataset([train(), images(4, 2000, RANDOM)]),
    }[kind]
    method, teacher = Watched(), network(1)
    distiller = distiller_of(method, TeacherCacheOptions(views=3, dtype="fp32"), teacher)
    distiller.student.register_forward_pre_hook(method.see)
    fit(distiller, dataset, epochs=5, loader={"num_workers": workers})

    steps = -(-len(dataset) // 8)
    assert len(method.steps) == 5 * steps
    for inputs, logits in method.steps:
        torch.testing.assert_close(logits, teacher(inputs), rtol=1e-5, atol=1e-5)
    # three views in turn
    seen = [
        {row.numpy().tobytes() for inputs, _ in method.steps[epoch * steps :][:steps] for row in inputs}
        for epoch in range(5)
    ]
    assert (seen[0], seen[1]) == (seen[3], seen[4])
    assert len(seen[0] & seen[1]) < len(seen[0]) / 2


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].needs_teacher])
@pytest.mark.parametrize("augmented", [True, False])
def test_training_with_and_without_a_cache_ends_with_the_same_weights(method, augmented):
    dataset = train(RANDOM if augmented else PLAIN)
    teacher = Counting()
    cached = fit(distiller_of(method, teacher=teacher), dataset, epochs=3)
    computed = fit(distiller_of(method, False), dataset.with_views(3) if augmented else dataset, epochs=3)
    # the teacher computes in other batches, whose sums may differ in the last bit
    assert_same_weights(cached, computed, 1e-6)
    queried = N * (3 if augmented else 1) + (VALIDATION if METHODS[method].needs_outer_teacher else 0)
    assert queried < teacher.queried <= queried + 8 + 2 * N  # and the first batches, for checks


@pytest.mark.parametrize("outer", ["holdout", "union", "train"])
@pytest.mark.parametrize("method", ["tgeo", "rw"])
def test_each_source_of_outer_batches_has_its_own_logits(method, outer):
    cached = fit(distiller_of(build_method(method, outer=outer)), train(), epochs=3)
    computed = fit(distiller_of(build_method(method, outer=outer), False), train().with_views(3), epochs=3)
    assert_same_weights(cached, computed, 1e-6)


def test_with_exact_arithmetic_the_weights_are_equal_bit_for_bit():
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


def test_an_oversampled_training_set_is_queried_once_per_sample():
    whole = train(PLAIN)
    rows = [*range(N), *range(10), 3, 3]
    teacher = Counting()
    cached = fit(distiller_of(teacher=teacher), whole.subset(rows), epochs=2)
    assert teacher.queried <= N + 8
    assert_same_weights(cached, fit(distiller_of(cache=False), whole.subset(rows), epochs=2), 1e-6)


def test_ratios_after_training_use_stored_logits_too(tmp_path):
    teacher = Counting()
    distiller = fit(distiller_of(TGeoKD(outer="train"), teacher=teacher), train(), epochs=2, out=tmp_path / "run")
    queried = teacher.queried
    ratios = distiller.fusion_ratios(DataLoader(train(), 7))
    assert ratios.shape == (N,)
    assert teacher.queried == queried
    distiller.fusion_ratios(DataLoader(validation(), 7))
    assert teacher.queried == queried + VALIDATION


# ---- where the logits are stored


def test_a_resumed_run_uses_the_cache_in_its_folder(tmp_path):
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
    teacher.queried = 0
    resumed = fit(distiller_of("tgeo", teacher=teacher), train(), out=tmp_path / "cut", resume=True)
    assert teacher.queried <= 8  # the first batch, for checks
    assert_same_weights(resumed, whole)


def test_without_a_folder_the_cache_is_removed_at_the_end_also_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit(distiller_of(), train())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        fit(distiller_of(), train(), out=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_other_methods_share_a_folder_and_the_teacher_is_not_queried_again(tmp_path):
    shared = TeacherCacheOptions(folder=str(tmp_path / "shared"))
    teacher = Counting()
    distiller = distiller_of("kd", shared, teacher)
    everything = ArrayDataset.join(train(), validation())
    distiller.store_teacher(DataLoader(everything, 10), DataLoader(validation(), 6), folder=shared.folder, epochs=9)
    assert teacher.queried >= (N + VALIDATION) * 4 + VALIDATION
    queried = teacher.queried
    for method in ("kd", "ada", "tgeo", build_method("tgeo", outer="holdout"), "rw"):
        fit(distiller_of(method, shared, teacher), train(), epochs=2)
    fit(distiller_of("kd", shared, teacher), everything, epochs=2)
    assert teacher.queried <= queried + 6 * 8  # the first batch of each, for checks


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("teacher", "teacher weights"),
        ("inputs", "sample 6 "),
        ("ids", "sample 1;"),
        ("augmentation", "augmentation: .*padding=2.*padding=1"),
        ("preprocessing", "preprocessing"),
        ("views", "views: 4.* 2"),
        ("precision", "precision: 32-true.* bf16-mixed"),
    ],
)
def test_a_stale_cache_is_refused_and_the_change_named(tmp_path, change, named):
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
    with pytest.raises(InputError, match=f"stale.*{named}"):
        fit(distiller_of(cache=options, teacher=teacher, **settings), dataset)


# ---- what cannot be cached


class Jitter(Dataset):
    """A user's data set that augments at random, with ids."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.randn(3, 6, 6), i % C, i


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        (TensorDataset(torch.randn(N, 3, 6, 6), torch.arange(N) % C), "ids"),
        (Jitter(), "ArrayDataset"),
        (images(N, 0, lambda x: x + torch.rand(x.shape)), "ArrayDataset"),
    ],
)
def test_inputs_that_cannot_be_identified_are_refused(dataset, named):
    with pytest.raises(InputError, match=f"{named}.*cache_teacher=False"):
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
    with pytest.raises(InputError, match="id 9;"):
        fit(distiller_of(), dataset)


class Plain(Dataset):
    """A user's data set without a fingerprint; its ids are known from its samples only."""

    def __init__(self):
        self.whole = train(PLAIN)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.whole[i]


@pytest.mark.parametrize("kind", ["data set", "teacher", "transform", "list"])
def test_logits_that_a_later_run_cannot_recognise_are_stored_for_one_run(tmp_path, kind):
    module = network(1).eval()
    dataset = {"data set": Plain(), "transform": train(lambda x: PLAIN(x))}.get(kind, train(PLAIN))
    teacher = (lambda x: module(x)) if kind == "teacher" else network(1)

    def go(cache, **options):
        distiller = distiller_of(ratio_alone(outer="holdout"), cache, teacher)
        if kind != "list":
            return fit(distiller, dataset, epochs=2, **options)
        batches = list(DataLoader(dataset, 8))
        distiller.fit(batches, DataLoader(validation(), 6), epochs=2, seed=3, **options)
        return distiller

    cached = go(FP32, out=tmp_path / "run")
    assert not (tmp_path / "run" / "teacher-cache").exists()
    assert_same_weights(cached, go(False), 1e-6)
    with pytest.raises(InputError, match="folder"):
        go(TeacherCacheOptions(folder=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_probabilities_and_logits_of_one_network_are_not_confused(tmp_path):
    options = TeacherCacheOptions(folder=str(tmp_path / "cache"), dtype="fp32")
    teacher = nn.Sequential(network(1), nn.Softmax(dim=-1))
    cached = fit(distiller_of(cache=options, teacher=teacher, teacher_probs=True), train(PLAIN))
    computed = fit(distiller_of(cache=False, teacher=teacher, teacher_probs=True), train(PLAIN))
    assert_same_weights(cached, computed, 1e-6)
    with pytest.raises(InputError, match="teacher weights"):
        fit(distiller_of(cache=options, teacher=teacher), train(PLAIN))


def test_stored_predictions_are_not_stored_again(tmp_path):
    stored = StoredPredictions(torch.randn(N, C), train().ids)
    fit(distiller_of(VanillaKD(), True, stored), train(), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "teacher-cache").exists()


@pytest.mark.parametrize("augmented", [True, False])
def test_a_fitted_classifier_can_be_cached(augmented):
    whole = train(RANDOM if augmented else PLAIN)
    classifier = GaussianNB().fit(PLAIN(whole.inputs).flatten(1).numpy(), whole.target.numpy())
    cached = fit(distiller_of("kd", teacher=ProbaTeacher(classifier)), whole, epochs=2)
    computed = fit(distiller_of("kd", False, ProbaTeacher(classifier)), whole.with_views(2), epochs=2)
    assert_same_weights(cached, computed, 1e-6)


def test_a_random_split_of_an_augmenting_data_set_has_views_and_the_users_own_data_set_keeps_its_draws():
    whole = train()
    part, _ = random_split(whole, [20, 10], torch.Generator().manual_seed(0))
    fit(distiller_of(), part, epochs=2)
    assert whole.views is None
    first, second = (next(iter(DataLoader(whole, N)))[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("option", "value"), [("views", 0), ("top_k", 0), ("dtype", "int8")])
def test_impossible_options_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} .*{value}"):
        TeacherCacheOptions(**{option: value})


def test_views_of_the_loader_and_of_the_options_must_agree():
    with pytest.raises(InputError, match=r"3 views.* 2"):
        fit(distiller_of(cache=TeacherCacheOptions(views=2)), train().with_views(3))
