from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from criteo_rows import COLUMNS, encode, make_rows, write
from refusals import refused
from scipy.stats import chisquare
from torch.utils.data import ConcatDataset, DataLoader

from tgeokd.data.arrays import ArrayDataset
from tgeokd.data.loaders import shuffling
from tgeokd.data.tasks.criteo import store as store_module
from tgeokd.data.tasks.criteo.store import SPLITS, StoredRows, StoredSplit, StoreSettings, open_store

ROWS = make_rows(900, seed=2)
SETTINGS = StoreSettings(seed=3, min_count=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return open_store(write(folder / "train.txt", ROWS), SETTINGS, folder / "cache")


def arrays(store, split):
    return [np.asarray(store.array(split, name)) for name in ("codes", "label", "row")]


def test_a_store_holds_every_row_once_with_codes_fitted_on_the_training_rows_alone(store):
    train = arrays(store, "train")[2].tolist()
    codes, vocabulary = encode(ROWS, train, min_count=4)
    seen = []
    for split in SPLITS:
        found, label, rows = arrays(store, split)
        assert found.tolist() == [codes[i] for i in rows]
        assert label.tolist() == [int(ROWS[i][0]) for i in rows]
        assert rows.tolist() == sorted(rows)
        assert np.array_equal(rows, np.flatnonzero(SETTINGS.split(np.arange(900)) == SPLITS.index(split)))
        seen += rows.tolist()
    assert sorted(seen) == list(range(900))
    assert [list(store.encoder.values[name]) for name in COLUMNS] == vocabulary


def test_the_report_counts_what_is_there(store):
    report = store.report
    codes = {split: arrays(store, split)[0] for split in SPLITS}
    assert report["rows"] == 900
    assert report["clicks"] == sum(int(row[0]) for row in ROWS)
    assert report["splits"]["test"] == {"rows": len(codes["test"]), "clicks": int(arrays(store, "test")[1].sum())}
    blanks = {name: sum(row[1 + i] == "" for row in ROWS) for i, name in enumerate(COLUMNS)}
    assert report["missing_values"] == blanks
    unknown = dict(zip(COLUMNS, (codes["held_out"] == 1).sum(axis=0).tolist(), strict=True))
    assert report["values_without_a_code"]["held_out"] == {name: n for name, n in unknown.items() if n}
    assert report["codes"] == dict(zip(COLUMNS, store.encoder.inputs.categories, strict=True))
    assert report["counts_too_low_by_at_most"] == {}
    assert report["skipped_rows"] == {}


def test_counts_that_are_not_exact_are_reported_with_their_bound(tmp_path):
    settings = replace(SETTINGS, max_tracked=20, min_count=1)
    report = open_store(write(tmp_path / "train.txt", ROWS), settings, tmp_path / "cache").report
    assert report["counts_too_low_by_at_most"]["C26"] > 0
    assert max(report["codes"].values()) <= 22


def test_a_store_is_made_once_and_used_again(tmp_path, monkeypatch):
    path, cache = write(tmp_path / "train.txt", ROWS), tmp_path / "cache"
    first = open_store(path, SETTINGS, cache)
    monkeypatch.setattr(store_module, "_make", lambda *_: pytest.fail("made again"))
    again = open_store(path, SETTINGS, cache)
    assert again.folder == first.folder
    assert again.report == first.report
    assert [p.name for p in cache.iterdir()] == [first.folder.name]


def test_a_changed_file_or_setting_never_finds_the_old_store(tmp_path):
    path, cache = write(tmp_path / "train.txt", ROWS), tmp_path / "cache"
    folders = [open_store(path, SETTINGS, cache).folder]
    changes = {
        "seed": 4,
        "held_out": 0.2,
        "test": 0.2,
        "min_count": 5,
        "max_tracked": 99,
        "rows": 800,
        "bad_rows": "skip",
    }
    for name, value in changes.items():
        folders.append(open_store(path, replace(SETTINGS, **{name: value}), cache).folder)
    state = path.stat()
    write(path, [*ROWS[:-1], ROWS[0]])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    folders.append(open_store(path, SETTINGS, cache).folder)
    assert len(set(folders)) == len(changes) + 2


def test_several_writers_at_once_end_up_with_one_store(tmp_path):
    path, cache = write(tmp_path / "train.txt", ROWS), tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store(path, SETTINGS, cache), range(4)))
    assert len({s.folder for s in stores}) == 1
    assert len(list(cache.iterdir())) == 1
    for split in SPLITS:
        assert all(
            np.array_equal(a, b) for a, b in zip(arrays(stores[0], split), arrays(stores[3], split), strict=True)
        )


def test_a_failure_leaves_nothing_behind(tmp_path):
    path, cache = write(tmp_path / "train.txt", [*ROWS, ["1", "2"]]), tmp_path / "cache"
    with refused("train.txt", "line 901", "2 fields"):
        open_store(path, SETTINGS, cache)
    assert list(cache.iterdir()) == []
    assert open_store(path, replace(SETTINGS, bad_rows="skip"), cache).report["skipped_rows"] == {
        "wrong number of fields": 1
    }


@pytest.mark.parametrize("later", [ROWS[:500], [*ROWS[:-1], ROWS[0]]], ids=["shorter", "as long"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, later):
    path, cache = write(tmp_path / "train.txt", ROWS), tmp_path / "cache"
    whole = store_module._encode

    def interfering(*arguments):
        write(path, later)
        os.utime(path, (0, 0))
        return whole(*arguments)

    monkeypatch.setattr(store_module, "_encode", interfering)
    with refused("train.txt"):
        open_store(path, SETTINGS, cache)
    assert list(cache.iterdir()) == []


def test_a_damaged_store_is_named(tmp_path):
    path, cache = write(tmp_path / "train.txt", ROWS), tmp_path / "cache"
    array = open_store(path, SETTINGS, cache).folder / "test.codes.npy"
    array.write_bytes(array.read_bytes()[:-100])
    with refused("cache/train.txt"):
        open_store(path, SETTINGS, cache)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = write(tmp_path / "train.txt", ROWS)
    with refused("train.txt/cache", "data.cache"):
        open_store(path, SETTINGS, path / "cache")


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5), (-0.1, 0.5), (float("nan"), 0.1)])
def test_impossible_shares_are_refused(shares):
    with refused(f"held_out={shares[0]}", f"test={shares[1]}"):
        StoreSettings(held_out=shares[0], test=shares[1])


def test_splits_without_both_classes_are_refused(tmp_path):
    for rows in (ROWS[:8], [["0", *row[1:]] for row in ROWS]):
        with refused("train.txt", "clicks"):
            open_store(write(tmp_path / "train.txt", rows), SETTINGS, tmp_path / "cache")


def test_shares_are_those_asked_for():
    split = StoreSettings(seed=7, held_out=0.2, test=0.05).split(np.arange(200_000))
    assert chisquare(np.bincount(split), [150_000, 40_000, 10_000]).pvalue > 0.001


# ---- the data set


def test_batches_hold_the_rows_asked_for(store):
    dataset = StoredRows([StoredSplit(store, "train")])
    codes, label, rows = arrays(store, "train")
    assert len(dataset) == len(label)
    order = np.random.default_rng(0).permutation(len(label))[:50].tolist()
    ((numeric, categorical), target, ids), *rest = DataLoader(dataset, 50, sampler=order)
    assert not rest
    assert (numeric.shape, numeric.dtype) == ((50, 0), torch.float32)
    assert (categorical.dtype, target.dtype, ids.dtype) == (torch.int64,) * 3
    assert categorical.tolist() == codes[order].tolist()
    assert target.tolist() == label[order].tolist()
    assert ids.tolist() == rows[order].tolist()
    (numeric, categorical), target, row = dataset[-1]
    assert numeric.shape == (0,)
    assert (categorical.tolist(), int(target), int(row)) == (codes[-1].tolist(), label[-1], rows[-1])


def test_an_epoch_holds_every_row_once(store, monkeypatch):
    monkeypatch.setattr(StoredRows, "block_size", 64)
    both = StoredRows([StoredSplit(store, "train")]).join(StoredRows([StoredSplit(store, "held_out")]))
    ids = torch.cat([ids for _, _, ids in DataLoader(both, 37, **shuffling(both))]).tolist()
    expected = [*arrays(store, "train")[2], *arrays(store, "held_out")[2]]
    assert ids != expected
    assert sorted(ids) == sorted(expected)


def test_joined_rows_are_the_first_and_then_the_second(store):
    train, held_out = (StoredRows([StoredSplit(store, name)]) for name in ("train", "held_out"))
    both = train.join(held_out)
    assert isinstance(both, StoredRows)
    ((_, categorical), target, ids) = both.__getitems__(list(range(len(both))))[0]
    for i, found in enumerate((categorical, target, ids)):
        assert np.array_equal(found, np.concatenate([arrays(store, "train")[i], arrays(store, "held_out")[i]]))
    other = ArrayDataset(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    assert isinstance(train.join(other), ConcatDataset)


def test_noise_flips_training_labels_alone_and_says_which(store):
    clean, noisy = StoredSplit(store, "train"), StoredSplit(store, "train", noise=0.3, seed=5)
    everything = list(range(len(StoredRows([clean]))))
    (_, target, _), (_, flipped, _) = (StoredRows([split]).__getitems__(everything)[0] for split in (clean, noisy))
    wrong = noisy.all_flipped()
    assert clean.all_flipped() is None
    assert torch.equal(target != flipped, wrong)
    assert abs(wrong.double().mean() - 0.3) < 4 * (0.21 / len(wrong)) ** 0.5
    joined = StoredRows([noisy]).join(StoredRows([StoredSplit(store, "held_out")]))
    ((_, _), target, _) = joined.__getitems__(list(range(len(joined))))[0]
    assert target[len(wrong) :].tolist() == arrays(store, "held_out")[1].tolist()
    assert not torch.equal(replace(noisy, seed=6).all_flipped(), wrong)
    with refused("noise", "1.5"):
        StoredSplit(store, "train", noise=1.5)


def test_worker_processes_get_no_rows_sent(store):
    dataset = StoredRows([StoredSplit(store, "train")])
    sent = pickle.dumps(dataset)
    assert len(sent) < len(dataset) * 39 * 4  # the encoder, not the rows
    assert pickle.loads(sent)[5][2] == dataset[5][2]
