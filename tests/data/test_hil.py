"""The power system data: generated files of the published layout, and the parts at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from realdata import data_dir
from refusals import refused

from tgeokd.data.tasks.hil import FEATURES, hil

PARTS = 15
NATURAL, QUIET = [*range(1, 7), 13, 14], [41]
ATTACKS = [*range(7, 13), *range(15, 31), *range(35, 41)]
SCENARIOS = [*NATURAL, *ATTACKS, *QUIET]


def event(scenario: int) -> str:
    return "NoEvents" if scenario in QUIET else "Natural" if scenario in NATURAL else "Attack"


def part(number: int, markers: list[str]) -> pl.DataFrame:
    """Rows whose first column tells the row, the other 127 being noise."""
    values = np.random.default_rng(number).normal(size=(len(markers), len(FEATURES))).round(6)
    values[:, 0] = 1000 * number + np.arange(len(markers))
    return pl.DataFrame(values, schema=list(FEATURES)).with_columns(marker=pl.Series(markers, dtype=pl.String))


def write_arff(frame: pl.DataFrame, path: Path) -> None:
    classes = ",".join(sorted(set(frame["marker"])))
    header = ["% generated", "@relation power", "", *(f"@attribute {name} numeric" for name in FEATURES)]
    header += [f"@attribute marker {{{classes}}}", "", "@data"]
    path.write_text("\n".join(header) + "\n" + frame.write_csv(include_header=False))


def write(folder: Path, frames: list[pl.DataFrame], kind: str = "parquet", **others: str) -> list[Path]:
    """The files of an archive, most in Parquet, which is the fastest to read; ``others`` are kinds of single files."""
    folder.mkdir(parents=True)
    paths = [folder / f"data{i}.{others.get(f'data{i}', kind)}" for i in range(1, len(frames) + 1)]
    for frame, path in zip(frames, paths, strict=True):
        if path.suffix == ".arff":
            write_arff(frame, path)
        elif path.suffix == ".csv":
            frame.write_csv(path)
        else:
            frame.write_parquet(path)
    return paths


def triple(rows: int = 12) -> list[pl.DataFrame]:
    return [part(i, (["Attack"] * 7 + ["Natural"] * 3 + ["NoEvents"] * 2)[:rows]) for i in range(1, PARTS + 1)]


def multi() -> list[pl.DataFrame]:
    return [part(i, [str(s) for s in SCENARIOS]) for i in range(1, PARTS + 1)]


def rows_of(data):
    """All samples by id: the class, and the row mark that the first column held before it was standardised."""
    mean, sd = data.encoder.numeric[0].mean, data.encoder.numeric[0].sd
    for split in (data.train, data.held_out, data.test):
        marks = (split.inputs[0][:, 0].double() * sd + mean).round().long()
        yield from zip(split.ids.tolist(), marks.tolist(), split.target.tolist(), strict=True)


@pytest.mark.parametrize("kind", ["csv", "arff", "parquet"])
def test_the_15_files_become_one_table_in_the_order_of_their_numbers(tmp_path, kind):
    frames = triple()
    write(tmp_path / "hil" / "triple", frames, kind)
    data = hil(data_dir=tmp_path)
    assert data.class_names == ("NoEvents", "Natural", "Attack")
    assert data.inputs.shape == (128,)
    assert data.inputs.categories == ()
    names = [data.class_names.index(m) for frame in frames for m in frame["marker"]]
    marks = [int(v) for frame in frames for v in frame[FEATURES[0]]]
    assert sorted(rows_of(data)) == list(zip(range(180), marks, names, strict=True))
    assert [len(data.train), len(data.held_out), len(data.test)] == [108, 27, 45]
    assert data.notes["rows"] == {"train": 108, "oversampled": 0, "held_out": 27, "test": 45}
    assert len(data.notes["files"]) == PARTS
    json.dumps(data.notes, allow_nan=False)


def test_splits_keep_the_shares_of_the_classes_and_follow_the_seed(tmp_path):
    write(tmp_path / "triple", triple())
    data, again, other = (hil(data_dir=tmp_path, seed=seed) for seed in (1, 1, 2))
    for split in (data.train, data.held_out, data.test):
        # 7 : 3 : 2 to within a row
        assert (split.target.bincount() / len(split) * 12 - torch.tensor([2, 3, 7])).abs().max() <= 12 / len(split)
    assert torch.equal(data.test.ids, again.test.ids)
    assert not torch.equal(data.test.ids, other.test.ids)


def test_scaling_looks_at_the_training_part_alone(tmp_path):
    write(tmp_path / "triple", triple())
    data = hil(data_dir=tmp_path)
    x = data.train.inputs[0].double()
    assert x.mean(0).abs().max() < 1e-6
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-6
    assert data.test.inputs[0].double().mean(0).abs().max() > 1e-3


def test_scenario_numbers_serve_all_three_tasks(tmp_path):
    write(tmp_path / "multiclass", multi())
    three, two, many = (hil(data_dir=tmp_path, classes=classes) for classes in ("triple", "binary", "multi"))
    truth = [event(s) for _ in range(PARTS) for s in SCENARIOS]
    for i, _, target in rows_of(three):
        assert three.class_names[target] == truth[i]
    for i, _, target in rows_of(two):
        assert two.class_names[target] == ("Attack" if truth[i] == "Attack" else "Natural")
    assert two.class_names == ("Natural", "Attack")
    assert many.class_names == tuple(str(s) for s in sorted(SCENARIOS))
    assert many.num_classes == 37
    for i, _, target in rows_of(many):
        assert many.class_names[target] == str(SCENARIOS[i % 37])
    assert [event(int(many.class_names[c])) for c in many.metrics.attack_classes] == ["Attack"] * 28


def test_the_own_archive_comes_before_the_scenarios(tmp_path):
    write(tmp_path / "hil" / "multiclass", multi())
    write(
        tmp_path / "hil" / "binaryAllNaturalPlusNormalVsAttacks",
        [part(i, ["Attack", "Natural"] * 4) for i in range(15)],
    )
    assert hil(data_dir=tmp_path, classes="binary").notes["folder"] == "binaryAllNaturalPlusNormalVsAttacks"
    assert hil(data_dir=tmp_path, classes="triple").notes["folder"] == "multiclass"


def test_detection_counts_natural_and_quiet_rows_as_normal(tmp_path):
    write(tmp_path / "triple", triple())
    data = hil(data_dir=tmp_path)
    assert data.metrics.primary == "macro_f1"
    target = data.test.target
    sure = torch.nn.functional.one_hot(target, 3) * 9.0
    assert data.metrics(sure, target)["detection_rate"] == 1
    # quiet and natural rows taken for each other: no false alarm
    confused = sure[:, [1, 0, 2]]
    result = data.metrics(confused, target)
    assert result["detection_rate"] == 1
    assert result["recall/Natural"] == result["recall/NoEvents"] == 0
    assert result["recall/Attack"] == 1


def test_infinite_and_missing_values_are_counted_and_become_the_mean_with_an_indicator(tmp_path):
    paths = write(tmp_path / "triple", triple(), data1="csv")
    lines = paths[0].read_text().splitlines()
    z, zh = FEATURES.index("R1-PA:Z"), FEATURES.index("R1-PA:ZH")
    for row, column, text in [(0, z, "inf"), (1, z, "-Infinity"), (2, z, ""), (2, zh, "NaN"), (3, zh, "?")]:
        cells = lines[1 + row].split(",")
        cells[column] = text
        lines[1 + row] = ",".join(cells)
    paths[0].write_text("\n".join(lines) + "\n")
    # a seed that puts all four rows into the training part
    tries = (hil(data_dir=tmp_path, seed=seed, held_out=0.05, test=0.05) for seed in range(10))
    data = next(data for data in tries if {0, 1, 2, 3} <= set(data.train.ids.tolist()))
    assert data.notes["missing"] == {"values": 5, "columns": 2, "most": {"R1-PA:Z": 3, "R1-PA:ZH": 2}}
    assert data.notes["infinite"] == {"values": 2, "columns": 1, "most": {"R1-PA:Z": 2}}
    assert data.inputs.shape == (130,)
    x = data.train.inputs[0][data.train.ids.argsort()][:4]
    assert x[:3, z].tolist() == [0, 0, 0]
    assert x[2:, zh].tolist() == [0, 0]
    assert x[:, 128].tolist() == [1, 1, 1, 0]
    assert x[:, 129].tolist() == [0, 0, 1, 1]
    assert all(bool(torch.isfinite(split.inputs[0]).all()) for split in (data.train, data.held_out, data.test))


def test_oversampling_and_noise_touch_training_rows_alone(tmp_path):
    write(tmp_path / "triple", triple())
    plain = hil(data_dir=tmp_path)
    data = hil(data_dir=tmp_path, oversample=True, noise=0.3)
    for name in ("held_out", "test"):
        assert torch.equal(getattr(plain, name).ids, getattr(data, name).ids)
        assert torch.equal(getattr(plain, name).target, getattr(data, name).target)
    truth = {i: target for i, _, target in rows_of(plain)}
    assert set(data.train.ids.tolist()) == set(plain.train.ids.tolist())
    assert len(set(data.train.target.bincount().tolist())) == 1
    assert data.notes["rows"]["oversampled"] == len(data.train) - len(plain.train) > 0
    wrong = [truth[i] != target for i, target in zip(data.train.ids.tolist(), data.train.target.tolist(), strict=True)]
    assert data.corrupted.tolist() == wrong
    by_id = dict(zip(data.train.ids.tolist(), wrong, strict=True))
    assert data.notes["wrong_training_labels"] == sum(by_id.values()) > 0
    assert not plain.corrupted.any()
    # the scaler knows nothing of repeated rows
    assert data.encoder == plain.encoder


def test_bad_rows(tmp_path):
    paths = write(tmp_path / "triple", triple(), data2="csv")
    lines = paths[1].read_text().splitlines()
    cells = lines[3].split(",")
    lines[3] = ",".join([*cells[:4], "12..5", *cells[5:]])
    paths[1].write_text("\n".join(lines) + "\n")
    with refused("row 2", "data2.csv", "column R1-PA3:VH", "'12..5'"):
        hil(data_dir=tmp_path, file="triple/data2.csv")
    lines[5] = lines[5].rpartition(",")[0] + ",Atack"
    lines[6] = lines[6].rpartition(",")[0] + ","
    lines[7] += ",1"
    paths[1].write_text("\n".join(lines) + "\n")
    with refused("row 6", "data2.csv", "130", "129"):
        hil(data_dir=tmp_path)
    data = hil(data_dir=tmp_path, bad_rows="skip")
    assert data.notes["skipped_rows"] == {"data2.csv": 4}
    marks = {i: mark for i, mark, _ in rows_of(data)}
    assert sorted(set(range(180)) - set(marks)) == [12 + 2, 12 + 4, 12 + 5, 12 + 6]
    assert marks[12 + 3] == 2003  # ids count the rows left out
    assert marks[24] == 3000


@pytest.mark.parametrize(
    ("label", "mentioned"),
    [
        ("Atack", ("row 4", "data2.csv", "'Atack'")),
        ("", ("row 4", "data2.csv", "column marker")),
        ("31", ("row 4", "data2.csv", "'31'")),
    ],
)
def test_wrong_labels(tmp_path, label, mentioned):
    paths = write(tmp_path / "triple", triple(), data2="csv")
    lines = paths[1].read_text().splitlines()
    lines[5] = lines[5].rpartition(",")[0] + "," + label
    paths[1].write_text("\n".join(lines) + "\n")
    with refused(*mentioned):
        hil(data_dir=tmp_path, file="triple/data2.csv")


def test_rows_of_arff_are_counted_from_its_data(tmp_path):
    paths = write(tmp_path / "triple", triple(), data5="arff")
    lines = paths[4].read_text().splitlines()
    lines[-2] = lines[-2].replace("NoEvents", "Nothing")
    paths[4].write_text("\n".join(lines) + "\n")
    with refused("row 10", "data5.arff", "'Nothing'"):
        hil(data_dir=tmp_path)
    paths[4].write_text("@relation power\n")
    with refused("data5.arff"):
        hil(data_dir=tmp_path)


def test_incomplete_and_ambiguous_folders(tmp_path):
    with refused("triple", "multiclass", "data.file"):
        hil(data_dir=tmp_path)
    paths = write(tmp_path / "triple", triple(), data2="csv")
    paths[6].rename(tmp_path / "elsewhere.parquet")
    with refused("missing: data7"):
        hil(data_dir=tmp_path)
    (tmp_path / "elsewhere.parquet").rename(tmp_path / "triple" / "data16.parquet")
    with refused("data7", "data16.parquet"):
        hil(data_dir=tmp_path)
    (tmp_path / "triple" / "data16.parquet").rename(paths[6])
    write_arff(triple()[1], tmp_path / "triple" / "data2.arff")
    with refused("data2.arff", "data2.csv"):
        hil(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "mentioned"),
    [
        (lambda frame: frame.rename({"R2:F": "R2-F"}), ("data3.parquet", "'R2-F'", "'R2:F'")),
        (lambda frame: frame.drop("R2:F"), ("data3.parquet", "1 of 128", "'R2:F'")),
        (lambda frame: frame.drop("marker"), ("data3.parquet", "'marker'")),
        (lambda frame: frame.with_columns(marker=pl.lit("x")), ("data3.parquet", "'x'")),
    ],
)
def test_wrong_headers(tmp_path, change, mentioned):
    frames = triple()
    frames[2] = change(frames[2])
    write(tmp_path / "triple", frames)
    with refused(*mentioned) as error:
        hil(data_dir=tmp_path)
    assert len(str(error.value)) < 400


def test_one_file_may_hold_some_columns_in_any_order(tmp_path):
    frame = part(1, ["Attack"] * 20 + ["Natural"] * 20 + ["NoEvents"] * 20).select("R4:F", "marker", "R1:F")
    frame.with_columns(source_file=pl.lit("x")).write_csv(tmp_path / "mine.csv")
    data = hil(data_dir=tmp_path, file="mine.csv")
    assert [column.name for column in data.encoder.numeric] == ["R4:F", "R1:F"]
    # a binary reading of the same rows: quiet is natural
    assert hil(data_dir=tmp_path, file="mine.csv", classes="binary").notes["class_counts"]["test"] == {
        "Natural": 10,
        "Attack": 5,
    }
    with refused("row 0", "mine.csv", "'Attack'", "1, 2, 3, 4, 5"):
        hil(data_dir=tmp_path, file="mine.csv", classes="multi")
    with refused("hil/other.csv", "other.csv"):
        hil(data_dir=tmp_path, file="other.csv")


def test_a_class_without_rows_is_refused(tmp_path):
    part(1, ["Attack", "Natural"] * 20).write_csv(tmp_path / "data1.csv")
    with refused("data1.csv", "'NoEvents'", "classes=triple"):
        hil(data_dir=tmp_path, file="data1.csv")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "classes", "columns", "rows"),
    [
        ("hil_triple_data3_15feat.parquet", "triple", 15, {"Attack": 2636, "Natural": 826, "NoEvents": 266}),
        ("hil_binary_data1_9feat.parquet", "binary", 9, {"Attack": 2707, "Natural": 756}),
        ("hil_binary_data1_527rows_128feat.parquet", "binary", 128, {"Attack": 354, "Natural": 173}),
    ],
)
def test_the_parts_at_hand(file, classes, columns, rows):
    data = hil(data_dir=data_dir(), file=file, classes=classes)
    assert data.inputs.shape == (columns,)
    counts = data.notes["class_counts"]
    assert {name: sum(split[name] for split in counts.values()) for name in rows} == rows
    frame = pl.read_parquet(data_dir() / "hil" / file)
    names = [data.class_names[c] for c in data.test.target]
    assert names == frame["marker"][data.test.ids.numpy()].to_list()
    first = data.encoder.numeric[0]
    expected = (frame[first.name].to_numpy()[data.test.ids] - first.mean) / first.sd
    assert data.test.inputs[0][:, 0].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.realdata
def test_the_published_header():
    frame = pl.read_parquet(data_dir() / "hil" / "hil_binary_data1_527rows_128feat.parquet")
    assert tuple(frame.columns[:128]) == FEATURES


@pytest.mark.realdata
@pytest.mark.parametrize("classes", ["triple", "binary"])
def test_trees_find_the_classes_of_the_parts_at_hand(classes):
    """The labels belong to the rows: a peer on the same split is far better than the largest class."""
    from sklearn.ensemble import ExtraTreesClassifier

    file = "hil_triple_data3_15feat.parquet"
    data = hil(data_dir=data_dir(), file=file, classes=classes)
    model = ExtraTreesClassifier(30, random_state=0).fit(data.train.inputs[0].numpy(), data.train.target.numpy())
    probs = torch.from_numpy(model.predict_proba(data.test.inputs[0].numpy()))
    result = data.metrics((probs + 1e-6).log(), data.test.target)
    assert result["accuracy"] > 0.9
    assert result["macro_auc"] > 0.95
