"""Stored predictions: found by id in any order, unchanged by a file of any format, refused where wrong."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.batch import Batch
from tgeokd.teachers import StoredPredictions
from tgeokd.utils.errors import InputError, StorageError

SUFFIXES = (".npz", ".safetensors", ".parquet")
PROBS = [[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [1.0, 0.0, 0.0]]
IDS = [40, 7, 12]

many_ids = st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=30, unique=True)


def some_logits(rows: int, classes: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def write(path, *, ids=IDS, **values):
    """A file as another program would write it."""
    arrays = {"ids": np.asarray(ids), **{key: np.asarray(value) for key, value in values.items()}}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
    else:
        pl.DataFrame({"id": arrays.pop("ids"), **{k: v.tolist() for k, v in arrays.items()}}).write_parquet(path)
    return path


# ---- lookup


@given(many_ids, st.data())
def test_lookup_is_a_dictionary(ids, data):
    logits = some_logits(len(ids))
    stored = StoredPredictions(logits, torch.tensor(ids))
    wanted = data.draw(st.lists(st.sampled_from(ids), max_size=40))
    table = dict(zip(ids, logits, strict=True))
    expected = torch.stack([table[i] for i in wanted]) if wanted else torch.empty(0, 3)
    torch.testing.assert_close(stored.lookup(torch.tensor(wanted, dtype=torch.int64)), expected, rtol=0, atol=0)


def test_an_id_that_is_not_stored_is_named_with_the_range_of_stored_ids():
    stored = StoredPredictions(some_logits(3), torch.tensor(IDS))
    with pytest.raises(InputError, match=r" 123;.* 7 to 40"):
        stored.lookup(torch.tensor([7, 123]))


def test_it_is_a_teacher_that_looks_up_the_ids_of_a_batch():
    logits = some_logits(3)
    stored = StoredPredictions(logits, torch.tensor(IDS))
    batch = Batch(None, torch.zeros(2, dtype=torch.int64), torch.tensor([12, 40]))
    assert torch.equal(stored.logits(batch), logits[[2, 0]])
    with pytest.raises(InputError, match="ids"):
        stored.logits(Batch(None, torch.zeros(2, dtype=torch.int64)))


def test_the_fingerprint_depends_on_ids_and_logits():
    logits, ids = some_logits(3), torch.tensor(IDS)
    same, others = StoredPredictions(logits.clone(), ids.int()), (logits + 1e-6, logits.flip(0))
    assert same.fingerprint() == StoredPredictions(logits, ids).fingerprint()
    different = [StoredPredictions(other, ids) for other in others] + [StoredPredictions(logits, ids + 1)]
    assert len({same.fingerprint(), *(stored.fingerprint() for stored in different)}) == 4


def test_narrow_ids_and_one_logit_of_a_binary_task():
    stored = StoredPredictions(torch.tensor([1.5, -2.0]), torch.tensor([1, 0], dtype=torch.uint8))
    found = stored.lookup(torch.tensor([0, 1], dtype=torch.int32))
    assert found.tolist() == [[0.0, -2.0], [0.0, 1.5]]
    assert stored.num_classes == 2
    assert len(stored) == 2


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_is_named(wrong):
    logits = some_logits(3)
    logits[1, 2] = wrong
    with pytest.raises(InputError, match=r"row 1 \(sample 7\)"):
        StoredPredictions(logits, torch.tensor(IDS))


def test_a_repeated_id_is_named_with_its_rows():
    with pytest.raises(InputError, match=r"sample 5 .*rows 1 and 3"):
        StoredPredictions(some_logits(4), torch.tensor([9, 5, 2, 5]))


@pytest.mark.parametrize("logits", [torch.zeros(4, 3), torch.tensor(1.0), torch.zeros(3, 2, 2)])
def test_shapes_that_do_not_fit_are_refused(logits):
    with pytest.raises(InputError, match="shape"):
        StoredPredictions(logits, torch.tensor(IDS))


def test_no_samples_are_refused():
    with pytest.raises(InputError, match="no samples"):
        StoredPredictions(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


# ---- files


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=10)
@given(ids=many_ids, classes=st.integers(2, 5))
def test_saving_and_reading_changes_nothing(tmp_path_factory, suffix, ids, classes):
    path = tmp_path_factory.mktemp("saved") / f"teacher{suffix}"
    stored = StoredPredictions(some_logits(len(ids), classes), torch.tensor(ids))
    stored.save(path)
    back = StoredPredictions.from_file(path, num_classes=classes)
    assert torch.equal(back.ids, stored.ids)
    assert torch.equal(back.stored_logits, stored.stored_logits)
    assert {file.name for file in path.parent.iterdir()} == {
        path.name,
        f"{path.name}.sha256",
    }  # no temporary file stays


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_become_logits_of_the_same_distribution(tmp_path, suffix, dtype):
    path = write(tmp_path / f"t{suffix}", probs=np.asarray(PROBS, dtype=dtype))
    found = StoredPredictions.from_file(path, num_classes=3).lookup(torch.tensor([12, 40, 7]))
    expected = torch.tensor([PROBS[2], PROBS[0], PROBS[1]])
    torch.testing.assert_close(found.softmax(dim=-1), expected, rtol=1e-6, atol=1e-7)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_probability_a_sample_is_that_of_class_1(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", probs=np.array([0.25, 0.5, 1.0])) if suffix != ".parquet" else None
    if path is None:
        path = tmp_path / "t.parquet"
        pl.DataFrame({"id": IDS, "prob_0": [0.25, 0.5, 1.0]}).write_parquet(path)
    probs = StoredPredictions.from_file(path, num_classes=2).stored_logits.softmax(dim=-1)
    torch.testing.assert_close(probs, torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("stem", ["prob", "logit"])
def test_numbered_parquet_columns_are_taken_by_number_not_by_place(tmp_path, stem):
    values = torch.full((2, 12), 1 / 12) if stem == "prob" else some_logits(2, 12)
    columns = {f"{stem}_{c}": values[:, c].numpy() for c in reversed(range(12))}
    pl.DataFrame({**columns, "label": ["a", "b"], "id": [3, 1]}).write_parquet(tmp_path / "t.parquet")
    found = StoredPredictions.from_file(tmp_path / "t.parquet").lookup(torch.tensor([3, 1]))
    torch.testing.assert_close(found.softmax(dim=-1), values if stem == "prob" else values.softmax(dim=-1))


@pytest.mark.parametrize("array", [np.zeros((3, 2), ">f8"), np.zeros((3, 2), "f2"), np.zeros((3, 2), "i4")])
def test_other_number_types_are_read(tmp_path, array):
    array[:, 1] = [1, 2, 3]
    np.savez(tmp_path / "t.npz", ids=np.array(IDS, ">i4"), logits=array)
    assert StoredPredictions.from_file(tmp_path / "t.npz").lookup(torch.tensor([7])).tolist() == [[0.0, 2.0]]


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        StoredPredictions.from_file(path, **options)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestRefused:
    def test_logits_given_as_probabilities(self, tmp_path, suffix):
        refused(write(tmp_path / f"t{suffix}", probs=[[1.0, 0.0], [0.5, 0.5], [2.5, -1.0]]), "row 2 ")

    def test_both_and_neither(self, tmp_path, suffix):
        refused(write(tmp_path / f"both{suffix}", probs=PROBS, logits=PROBS), "'probs' or 'logits'")
        refused(write(tmp_path / f"neither{suffix}", scores=PROBS), "'probs' or 'logits'.*scores")

    def test_no_ids(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        if suffix == ".npz":
            np.savez(path, probs=PROBS)
        elif suffix == ".safetensors":
            save_file({"probs": torch.tensor(PROBS)}, path)
        else:
            pl.DataFrame({"probs": PROBS}).write_parquet(path)
        refused(path, "'ids?' .*probs")

    def test_another_number_of_classes(self, tmp_path, suffix):
        path = write(tmp_path / f"t{suffix}", probs=PROBS)
        refused(path, " 3 .* 5", num_classes=5)

    def test_ids_that_repeat_or_are_not_integers(self, tmp_path, suffix):
        refused(write(tmp_path / f"twice{suffix}", ids=[1, 2, 1], probs=PROBS), "sample 1 .*rows 0 and 2")
        refused(write(tmp_path / f"real{suffix}", ids=[1.0, 2.0, 3.0], probs=PROBS), "ids .*float")

    def test_a_file_cut_off_anywhere(self, tmp_path, suffix):
        whole = write(tmp_path / f"whole{suffix}", logits=some_logits(3).numpy()).read_bytes()
        path = tmp_path / f"cut{suffix}"
        for size in sorted({0, 1, 4, *range(8, len(whole), max(1, len(whole) // 20)), len(whole) - 1}):
            path.write_bytes(whole[:size])
            refused(path, "cut")

    def test_a_file_of_something_else(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        path.write_text("id,prob_0,prob_1\n1,0.5,0.5\n" * 10)
        refused(path, re.escape(str(path)))

    def test_no_file(self, tmp_path, suffix):
        refused(tmp_path / f"none{suffix}", "no file")

    def test_no_folder_to_save_in(self, tmp_path, suffix):
        with pytest.raises(InputError, match=f"t{suffix}"):
            StoredPredictions(some_logits(1), torch.tensor([0])).save(tmp_path / "none" / f"t{suffix}")


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"'\.csv'"):
        StoredPredictions(some_logits(1), torch.tensor([0])).save(tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"'\.pt'"):
        StoredPredictions.from_file(tmp_path / "t.pt")


def test_a_pickle_in_an_npz_is_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "t.npz", ids=np.array(IDS), logits=np.array([Trap()] * 3, dtype=object))
    refused(tmp_path / "t.npz", "allow_pickle")
    assert not (tmp_path / "sprung").exists()


def test_an_npy_file_under_the_name_npz(tmp_path):
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros((3, 2)))
    refused(tmp_path / "t.npz", "array")


def test_ids_beyond_int64_are_refused(tmp_path):
    np.savez(tmp_path / "t.npz", ids=np.array([1, 2, 2**63], dtype=np.uint64), logits=PROBS)
    refused(tmp_path / "t.npz", "below 2\\^63")


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        ({"id": [1, 2], "probs": [[0.5, 0.5], [1.0]]}, "1 to 2 numbers"),
        ({"id": [1, 2], "probs": [[0.5, 0.5], None]}, "'probs' has 1 missing values"),
        ({"id": [1, None], "probs": [[0.5, 0.5], [1.0, 0.0]]}, "'id' has 1 missing values"),
        ({"id": [1], "logits": [[0.5, None]]}, r"row 0 \(sample 1\)"),
        ({"id": [1], "probs": [0.5]}, "'probs'.*Float64"),
        ({"id": [1], "prob_0": [0.5], "prob_2": [0.5]}, "not prob_1"),
        ({"id": [1], "prob_0": [0.5], "logit_0": [0.5]}, "'probs' or 'logits'"),
        ({"id": [1], "prob_0": [1.0], "probs": [[0.5, 0.5]]}, "'probs' .*prob_0"),
        ({"id": [1], "probs": [["a", "b"]]}, "probs must be numbers"),
    ],
)
def test_parquet_files_that_do_not_fit(tmp_path, frame, match):
    pl.DataFrame(frame).write_parquet(tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", match)


# ---- from a teacher


def loader(ids, inputs, **options):
    return DataLoader(ArrayDataset(inputs, torch.zeros(len(ids), dtype=torch.int64), torch.tensor(ids)), 2, **options)


def test_a_module_is_queried_once_for_each_sample_in_eval_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    x = torch.randn(7, 4)
    before = torch.get_rng_state()
    loaders = [loader([10, 11, 12, 13, 14], x[:5], shuffle=True), loader([2, 3], x[5:])]
    stored = StoredPredictions.from_teacher(net, *loaders)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in net.modules())
    with torch.no_grad():
        expected = net.eval()(x)
    found = stored.lookup(torch.tensor([10, 11, 12, 13, 14, 2, 3]))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_a_callable_gets_both_tensors_of_a_table():
    inputs = (torch.tensor([[1.0], [2.0]]), torch.tensor([[3], [4]]))
    stored = StoredPredictions.from_teacher(lambda a, b: torch.cat([a, b], dim=1).double(), loader([5, 6], inputs))
    assert stored.lookup(torch.tensor([6, 5])).tolist() == [[2.0, 4.0], [1.0, 3.0]]


def test_loaders_without_ids_are_refused():
    data = ArrayDataset(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="ids"):
        StoredPredictions.from_teacher(nn.Linear(4, 3), DataLoader(data, 2))
    with pytest.raises(InputError, match="no samples"):
        StoredPredictions.from_teacher(nn.Linear(4, 3))


def test_a_repeated_sample_is_stored_once_and_in_the_order_of_first_occurrence():
    torch.manual_seed(0)
    x, rows = torch.randn(4, 4), [3, 1, 3, 0, 1, 1, 2]
    net = nn.Linear(4, 3)
    stored = StoredPredictions.from_teacher(net, loader([10 * row for row in rows], x[rows]), loader([30], x[[3]]))
    assert stored.ids.tolist() == [30, 10, 0, 20]
    torch.testing.assert_close(stored.stored_logits, net(x[[3, 1, 0, 2]]))


def test_an_id_of_two_samples_is_refused():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    with pytest.raises(InputError, match=r"id 7 .*by 1"):
        StoredPredictions.from_teacher(lambda inputs: inputs, loader([3, 7], x[:2]), loader([7], x[2:]))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.npz"
    old = StoredPredictions(some_logits(2), torch.tensor([1, 2]))
    old.save(path)

    def half_written(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half_written)
    with pytest.raises(StorageError, match="No space left"):
        StoredPredictions(some_logits(3), torch.tensor([4, 5, 6])).save(path)
    assert torch.equal(StoredPredictions.from_file(path).stored_logits, old.stored_logits)
    assert {file.name for file in tmp_path.iterdir()} <= {path.name, f"{path.name}.sha256"}
