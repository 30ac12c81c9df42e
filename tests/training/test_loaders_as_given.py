"""What a user chose in a loader stays: its order, workers and collation; what cannot stay is refused."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from small_training import CLASSES, assert_same, data, distiller_of, mlp, refused, weights
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tgeokd.core.model_call import class_logits
from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.batch import Batch
from tgeokd.data.loaders import BatchLoader, OuterStream, union_loader
from tgeokd.teachers import StoredPredictions

HELD_OUT = DataLoader(TensorDataset(*data(12, 7)), 6)


def loader(n=24, batch_size=8, kind=TensorDataset, **options):
    return DataLoader(kind(*data(n)), batch_size, **options)


# ---- the union of two loaders


def test_the_union_keeps_every_setting():
    def init(_):
        pass

    given = {
        "num_workers": 1, "prefetch_factor": 3, "timeout": 7.0, "persistent_workers": True, "worker_init_fn": init,
        "multiprocessing_context": "fork", "drop_last": True, "shuffle": True,
    }  # fmt: skip
    train = loader(**given)
    found = union_loader(train, HELD_OUT)
    for name in (
        "num_workers", "prefetch_factor", "timeout", "persistent_workers", "worker_init_fn", "drop_last", "collate_fn",
        "batch_size", "pin_memory", "generator", "multiprocessing_context", "in_order",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(train, name), name
    assert isinstance(found.sampler, RandomSampler)
    assert not union_loader(loader(num_workers=1), HELD_OUT).persistent_workers


def test_an_order_that_is_not_shuffled_stays():
    found = torch.cat([batch[0] for batch in union_loader(loader(), HELD_OUT)])
    assert torch.equal(found, torch.cat([data(24)[0], data(12, 7)[0]]))


class Doubled(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            yield batch


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(*data(24), strict=True))


@pytest.mark.parametrize(
    ("train", "named"),
    [
        (lambda d: DataLoader(d, batch_sampler=BatchSampler(SequentialSampler(d), 4, False)), "batch_sampler"),
        (lambda d: DataLoader(d, 8, sampler=WeightedRandomSampler(torch.ones(24), 24)), "WeightedRandomSampler"),
        (lambda d: DataLoader(d, 8, sampler=RandomSampler(d, replacement=True)), "RandomSampler"),
        (lambda d: DataLoader(d, 8, sampler=RandomSampler(d, num_samples=10)), "RandomSampler"),
        (lambda d: DataLoader(d, 8, sampler=[3, 1, 2]), "list"),
        (lambda d: Doubled(d, 8), "Doubled"),
        (lambda d: DataLoader(Endless(), 8), "IterableDataset"),
        (lambda d: DataLoader(d, batch_size=None), "batch_size"),
        (lambda d: [(d.tensors[0], d.tensors[1])], "list"),
    ],
    ids=["batch sampler", "weighted", "replacement", "fewer", "rows", "own iter", "iterable", "no batches", "a list"],
)
def test_what_cannot_be_extended_is_refused(train, named):
    with refused(named, "outer='holdout'"):
        union_loader(train(TensorDataset(*data(24))), HELD_OUT)
    distiller_of("tgeo, holdout")  # the way out is another option, not an error


@pytest.mark.parametrize("kind", [TensorDataset, ArrayDataset])
@pytest.mark.parametrize("batch_size", [5, 7, 35, 36, 40])
@pytest.mark.parametrize("shuffle", [True, False])
def test_no_batch_of_one_sample(kind, batch_size, shuffle):
    both = union_loader(loader(24, batch_size, kind, shuffle=shuffle), DataLoader(kind(*data(12, 7)), 6))
    sizes = [len(batch[1]) for batch in both]
    assert sum(sizes) == 36
    assert min(sizes) > 1
    assert len(both) == len(sizes)
    expected = -(-36 // batch_size) - (36 % batch_size == 1)
    assert len(sizes) == expected


def test_the_same_samples_in_the_same_order_as_without_merging():
    def rows(never_alone):
        dataset = TensorDataset(torch.arange(13))
        made = BatchLoader(
            dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(1), never_alone=never_alone
        )
        return [batch[0].tolist() for _ in range(2) for batch in made]

    plain, merged = rows(False), rows(True)
    assert [len(batch) for batch in merged] == [4, 4, 5] * 2
    assert list(chain(*plain)) == list(chain(*merged))


def test_batch_norm_trains_on_a_union_that_leaves_one_sample():
    student = mlp(1, norm=True)
    distiller_of("tgeo", student=student).fit(loader(25, 12, shuffle=True), HELD_OUT, epochs=2)


# ---- worker processes


@pytest.mark.process
@pytest.mark.parametrize("method", ["kd", "tgeo", "tgeo, holdout"])
@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_do_not_change_the_result(method, persistent):
    found = []
    for workers in ({}, {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": persistent}):
        train, held_out = (
            BatchLoader(ArrayDataset(*data(n, seed), torch.arange(n) + 100 * seed), 6, shuffle=shuffle, **workers)
            for n, seed, shuffle in ((24, 0, True), (12, 7, False))
        )
        distiller = distiller_of(method, allow_bad_teacher=True)
        distiller.fit(train, held_out, epochs=3)
        found.append(weights(distiller.student))
    assert_same(*found)


@pytest.mark.process
def test_outer_batches_are_the_same_with_workers():
    def batches(**workers):
        stream = OuterStream(DataLoader(TensorDataset(torch.arange(12), torch.zeros(12)), 5, **workers), None, seed=3)
        stream.start_epoch(1)
        return [next(stream)[0].tolist() for _ in range(9)]

    workers = {"num_workers": 2, "multiprocessing_context": "fork"}
    assert batches() == batches(**workers) == batches(**workers, persistent_workers=True)


# ---- batches, labels and outputs


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_are_class_indices(dtype):
    x, y = data(24)
    found = []
    for target in (y, y.to(dtype)):
        distiller = distiller_of("tgeo", allow_bad_teacher=True)
        distiller.fit(
            DataLoader(TensorDataset(x, target), 8), DataLoader(TensorDataset(x[:9], target[:9]), 3), epochs=1
        )
        found.append(weights(distiller.student))
        assert distiller.evaluate([(x, target)])["accuracy"] >= 0
    assert_same(*found)


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (lambda y: nn.functional.one_hot(y, CLASSES).float(), f"(8, {CLASSES})"),
        (lambda y: y.float(), "float32"),
        (lambda y: y.bool(), "bool"),
        (lambda y: y.tolist(), "list"),
    ],
    ids=["one-hot", "floats", "bools", "a list"],
)
def test_other_labels_are_refused_everywhere(target, named):
    x, y = data(8)
    batches = [(x, target(y))]
    for call in (
        lambda: distiller_of("kd").fit(batches, epochs=1),
        lambda: distiller_of("tgeo, holdout").fit([(x, y)], batches, epochs=1),
        lambda: distiller_of("kd").evaluate(batches),
        lambda: distiller_of("kd").predict(batches),
    ):
        with refused(named):
            call()


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (["a"] * 8, "number the samples"),
        (("a",) * 8, "number the samples"),
        (torch.rand(8), "float32"),
        (torch.zeros(8, 1).long(), "(8, 1)"),
        (torch.ones(8).bool(), "bool"),
    ],
    ids=["strings", "a tuple of strings", "weights", "two dimensions", "a mask"],
)
def test_third_elements_that_are_no_ids_are_refused(ids, named):
    x, y = data(8)
    for call in (
        lambda: distiller_of("kd").fit([(x, y, ids)], epochs=1),
        lambda: distiller_of("kd").evaluate([(x, y, ids)]),
        lambda: StoredPredictions.from_teacher(mlp(2), [(x, y, ids)]),
    ):
        with refused("integer sample ids", named):
            call()


class Wrapped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.net, self.form = mlp(1), form

    def forward(self, x):
        return self.form(self.net(x))


@pytest.mark.parametrize(
    "form", [lambda z: {"logits": z}, lambda z: (z, z + 1), lambda z: [z]], ids=["mapping", "tuple", "list"]
)
def test_outputs_that_hold_logits(form):
    x, y = data(24)
    assert torch.equal(class_logits(Wrapped(form), x), mlp(1)(x))
    found = []
    for student in (mlp(1), Wrapped(form)):
        distiller = distiller_of("tgeo, holdout", student=student, allow_bad_teacher=True)
        distiller.fit([(x, y)], [(x, y)], epochs=2)
        found.append([p.detach().clone() for p in student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("form", [lambda z: {"scores": z}, lambda z: (), lambda z: (None, z), lambda z: "z"])
def test_outputs_that_hold_none_are_refused(form):
    with refused("logits"):
        class_logits(Wrapped(form), data(4)[0])


def test_batches_of_a_tokenizer():
    x, y = data(8)
    batch = Batch.parse({"input_ids": x, "labels": y.int()})
    assert set(batch.inputs) == {"input_ids"}
    assert batch.target.dtype == torch.int64


# ---- ids that stand for two samples


def repeated_ids():
    ids = torch.arange(24)
    ids[5] = 4
    return ids


class Listed(torch.utils.data.Dataset):
    """A data set that nothing is known of."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


@pytest.mark.parametrize("kind", [TensorDataset, ArrayDataset, Listed])
@pytest.mark.parametrize("method", ["kd", "tgeo, holdout"])
def test_an_id_of_two_samples_is_refused_with_a_cache(kind, method):
    train = DataLoader(kind(*data(24), repeated_ids()), 8)
    held_out = DataLoader(kind(*data(12, 7), torch.arange(100, 112)), 6)
    with refused("id 4"):
        distiller_of(method, cache_teacher=True).fit(train, held_out, epochs=1)


@pytest.mark.parametrize("kind", [TensorDataset, ArrayDataset])
def test_an_id_of_two_samples_is_refused_with_stored_predictions(kind):
    stored = StoredPredictions(mlp(2)(data(24)[0]), torch.arange(24))
    with refused("id 4"):
        distiller_of("kd", teacher=stored).fit(DataLoader(kind(*data(24), repeated_ids()), 8), epochs=1)


@pytest.mark.parametrize("kind", [TensorDataset, ArrayDataset, Listed])
def test_the_same_sample_twice_is_no_fault(kind):
    rows = torch.cat([torch.arange(24), torch.tensor([4, 4])])
    x, y = data(24)
    train = DataLoader(kind(x[rows], y[rows], rows), 8)
    distiller_of("kd", cache_teacher=True, allow_bad_teacher=True).fit(train, epochs=1)


# ---- loaders that run dry


def test_a_loader_that_is_empty_in_a_later_epoch_is_refused():
    x, y = data(24)

    class Dry:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(x, y)] if self.passes <= 4 else [])  # two looks before training, two epochs

    with refused("training loader", "epoch"):
        distiller_of("kd").fit(Dry(), epochs=9)
