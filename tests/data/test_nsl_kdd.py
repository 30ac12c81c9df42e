"""NSL-KDD: generated files in the published layout, and the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from realdata import data_dir
from refusals import refused

from tgeokd.data.tasks.nsl_kdd import CATEGORIES, nsl_kdd

# the first published row, whose values are known
FIRST = "0,tcp,ftp_data,SF,491,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,2,2,0.00,0.00,0.00,0.00,1.00,0.00,0.00,150,25,"
FIRST += "0.17,0.03,0.17,0.00,0.00,0.00,0.05,0.00,normal,20"
TRAIN = ["normal"] * 30 + ["neptune", "smurf"] * 10 + ["satan"] * 10 + ["spy", "warezmaster"] * 4 + ["rootkit"] * 6
TEST = ["normal"] * 10 + ["neptune"] * 4 + ["apache2"] * 3 + ["satan", "saint", "spy", "snmpguess", "rootkit", "xterm"]


def line(kind: str, **values: str) -> str:
    cells = FIRST.split(",")
    places = {"duration": 0, "protocol": 1, "service": 2, "src_bytes": 4, "dst_bytes": 5, "count": 22, "difficulty": 42}
    for name, value in values.items():
        cells[places[name]] = value
    cells[41] = kind
    return ",".join(cells)


def write(folder: Path, train: list[str], test: list[str], train_file: str = "KDDTrain+.txt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, kinds in ((train_file, train), ("KDDTest+.txt", test)):
        rows = [line(kind, count=str(i), src_bytes=str(i * 1000)) for i, kind in enumerate(kinds)]
        (folder / name).write_text("\n".join(rows) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "NSL-KDD", TRAIN, TEST)
    return tmp_path


def class_of(kind: str) -> str:
    return next(name for name, kinds in CATEGORIES.items() if kind in kinds)


def test_every_row_keeps_its_class_and_its_number(folder):
    data = nsl_kdd(data_dir=folder)
    assert data.class_names == ("normal", "DoS", "Probe", "R2L", "U2R")
    kinds = TRAIN + TEST
    for split in (data.train, data.held_out, data.test):
        assert [data.class_names[c] for c in split.target] == [class_of(kinds[i]) for i in split.ids]
    assert data.test.ids.tolist() == list(range(len(TRAIN), len(TRAIN) + len(TEST)))
    both = torch.cat([data.train.ids, data.held_out.ids])
    assert sorted(both.tolist()) == list(range(len(TRAIN)))
    assert set(data.held_out.target.tolist()) == set(range(5))
    two = nsl_kdd(data_dir=folder, classes="binary")
    assert two.class_names == ("normal", "attack")
    assert torch.equal(two.test.target, (data.test.target > 0).long())
    json.dumps(data.notes, allow_nan=False)


def test_features_are_38_numbers_and_3_categories_without_the_difficulty(folder):
    data = nsl_kdd(data_dir=folder)
    assert data.inputs.shape == (38,)
    assert data.inputs.categories == (3, 3, 3)  # missing, unknown, and the one value
    names = [column.name for column in (*data.encoder.numeric, *data.encoder.categorical)]
    assert len(names) == 41
    assert not {"difficulty", "attack", "src_bytes"} & set(names)
    # bytes enter by their logarithm, counts as they are, both scaled by the training part
    for column, raw in (
        ("log1p(src_bytes)", np.log1p(1000.0 * np.arange(len(TRAIN)))),
        ("count", np.arange(len(TRAIN))),
    ):
        x = data.train.inputs[0][:, names.index(column)].numpy()
        fit = raw[data.train.ids]
        assert x == pytest.approx((fit - fit.mean()) / fit.std(), abs=1e-5)
        test = raw[: len(TEST)]
        assert data.test.inputs[0][:, names.index(column)].numpy() == pytest.approx(
            (test - fit.mean()) / fit.std(), abs=1e-5
        )


def test_groups_of_the_test_set(folder):
    groups = nsl_kdd(data_dir=folder).test_groups
    assert list(groups) == ["normal", "seen attack", "unseen attack"]
    assert torch.stack(list(groups.values())).sum(0).tolist() == [1] * len(TEST)
    named = [next(name for name, mask in groups.items() if mask[i]) for i in range(len(TEST))]
    expected = {"normal": "normal"} | dict.fromkeys(("apache2", "saint", "snmpguess", "xterm"), "unseen attack")
    assert named == [expected.get(kind, "seen attack") for kind in TEST]
    assert nsl_kdd(data_dir=folder).notes["unseen_attacks"] == ["apache2", "saint", "snmpguess", "xterm"]


def test_kinds_that_were_not_chosen_for_training_are_unseen(tmp_path):
    write(tmp_path, [*TRAIN, "land"], [*TEST, "land"])
    seen = {bool(nsl_kdd(data_dir=tmp_path, train=40, seed=s).test_groups["seen attack"][-1]) for s in range(8)}
    assert seen == {True, False}


def test_fewer_training_rows_leave_held_out_and_test_alone(folder):
    everything, few = nsl_kdd(data_dir=folder), nsl_kdd(data_dir=folder, train=30)
    assert len(few.train) == 30
    assert set(few.train.ids.tolist()) < set(everything.train.ids.tolist())
    assert torch.equal(few.held_out.ids, everything.held_out.ids)
    assert set(few.train.target.tolist()) == set(range(5))
    with refused("train", "[1, 62]", "63"):
        nsl_kdd(data_dir=folder, train=63)
    with refused("4 of 63"):
        nsl_kdd(data_dir=folder, train=4)


def test_oversampling_and_noise_touch_training_rows_alone(folder):
    plain, data = nsl_kdd(data_dir=folder), nsl_kdd(data_dir=folder, oversample=True, noise=0.2)
    for name in ("held_out", "test"):
        assert torch.equal(getattr(plain, name).ids, getattr(data, name).ids)
        assert torch.equal(getattr(plain, name).target, getattr(data, name).target)
    assert len(set(data.train.target.bincount().tolist())) == 1
    truth = [data.class_names.index(class_of(TRAIN[i])) for i in data.train.ids]
    assert data.corrupted.tolist() == [a != b for a, b in zip(truth, data.train.target.tolist(), strict=True)]
    assert data.corrupted.any()


def test_metrics_name_the_classes(folder):
    data = nsl_kdd(data_dir=folder)
    assert data.metrics.primary == "macro_f1"
    assert data.metrics.attack_classes == (1, 2, 3, 4)
    result = data.metrics(torch.nn.functional.one_hot(data.test.target, 5) * 5.0, data.test.target)
    assert set(result) == {"accuracy", "nll", "macro_f1", "macro_auc", "detection_rate"} | {
        f"recall/{name}" for name in CATEGORIES
    }
    assert all(result[key] == 1 for key in result if key != "nll")
    # an attack taken for another kind of attack is found all the same
    shifted = torch.nn.functional.one_hot(torch.where(data.test.target > 0, data.test.target % 4 + 1, 0), 5) * 5.0
    result = data.metrics(shifted, data.test.target)
    assert (result["detection_rate"], result["recall/DoS"], result["recall/normal"]) == (1, 0, 1)


def test_the_part_that_was_asked_for_is_read(folder):
    with refused("KDDTrain+_20Percent.txt", "train_20percent.parquet"):
        nsl_kdd(data_dir=folder, part="20percent")
    write(folder / "NSL-KDD", TRAIN[::-1], TEST, "KDDTrain+_20Percent.txt")
    assert list(nsl_kdd(data_dir=folder, part="20percent").notes["files"]) == [
        "KDDTrain+_20Percent.txt",
        "KDDTest+.txt",
    ]
    assert list(nsl_kdd(data_dir=folder).notes["files"]) == ["KDDTrain+.txt", "KDDTest+.txt"]
    (folder / "NSL-KDD" / "KDDTest+.txt").unlink()
    with refused("KDDTest+.txt", "test.parquet"):
        nsl_kdd(data_dir=folder)


@pytest.mark.parametrize(
    ("row", "mentioned"),
    [
        (
            line("neptun"),
            ("row 2", "KDDTrain+.txt", "'neptun'"),
        ),
        (line(""), ("row 2", "KDDTrain+.txt", "column attack")),
        (line("smurf", count="many"), ("row 2", "KDDTrain+.txt", "column count", "'many'")),
        (line("smurf", dst_bytes="-1"), ("row 2", "KDDTrain+.txt", "dst_bytes", "-1")),
        (line("smurf") + ",1", ("row 2", "KDDTrain+.txt", "44", "43")),
    ],
)
def test_faulty_rows(folder, row, mentioned):
    path = folder / "NSL-KDD" / "KDDTrain+.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], row, *lines[2:]]) + "\n")
    with refused(*mentioned):
        nsl_kdd(data_dir=folder)


def test_parquet_needs_the_columns(tmp_path):
    for name in ("train", "test"):
        pl.DataFrame({"duration": [1], "attack": ["normal"]}).write_parquet(tmp_path / f"{name}.parquet")
    with refused("train.parquet", "40 of 42", "'protocol_type'"):
        nsl_kdd(data_dir=tmp_path)


def test_a_test_file_without_attacks_is_refused(folder):
    (folder / "NSL-KDD" / "KDDTest+.txt").write_text(FIRST + "\n")
    with refused("'macro_auc'", "'normal'"):
        nsl_kdd(data_dir=folder)


def test_39_kinds_of_attack():
    kinds = [kind for kinds in CATEGORIES.values() for kind in kinds]
    assert len(kinds) == len(set(kinds)) == 40
    assert {name: len(kinds) for name, kinds in CATEGORIES.items()} == {
        "normal": 1,
        "DoS": 10,
        "Probe": 6,
        "R2L": 15,
        "U2R": 8,
    }


@pytest.mark.realdata
def test_the_real_files():
    data = nsl_kdd(data_dir=data_dir(), part="20percent")
    counts = data.notes["class_counts"]
    assert counts["test"] == {"normal": 9711, "DoS": 7458, "Probe": 2421, "R2L": 2754, "U2R": 200}  # as published
    train = {name: counts["train"][name] + counts["held_out"][name] for name in CATEGORIES}
    assert train == {"normal": 13449, "DoS": 9234, "Probe": 2289, "R2L": 209, "U2R": 11}  # as published
    assert min(counts["held_out"].values()) > 0
    assert len(data.notes["unseen_attacks"]) == 18
    assert {name: int(mask.sum()) for name, mask in data.test_groups.items()} == {
        "normal": 9711,
        "seen attack": 9081,
        "unseen attack": 3752,
    }
    assert all(bool(torch.isfinite(split.inputs[0]).all()) for split in (data.train, data.held_out, data.test))


@pytest.mark.realdata
def test_text_and_parquet_give_the_same_task(tmp_path):
    source = data_dir() / "nsl-kdd"
    for name, file in (("train_20percent", "KDDTrain+_20Percent.txt"), ("test", "KDDTest+.txt")):
        pl.read_parquet(source / f"{name}.parquet").gather_every(8).write_csv(tmp_path / file, include_header=False)
        pl.read_parquet(source / f"{name}.parquet").gather_every(8).write_parquet(tmp_path / f"{name}.parquet")
    options = {"part": "20percent", "classes": "binary"}
    text = nsl_kdd(data_dir=tmp_path, **options)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    table = nsl_kdd(data_dir=tmp_path, **options)
    assert table.encoder == text.encoder
    for name in ("train", "held_out", "test"):
        one, other = getattr(text, name), getattr(table, name)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
