from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from criteo_rows import make_rows, write
from refusals import refused
from sklearn.metrics import log_loss, roc_auc_score

from tgeokd.data.tasks.criteo import CriteoEncoder, criteo
from tgeokd.data.tasks.criteo.generator import GENERATOR_VERSION
from tgeokd.models import build_model

ROWS = make_rows(900, seed=2)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Options of a task on generated rows that all tests share."""
    return {"generated": 20_000, "cache": str(tmp_path_factory.mktemp("generated"))}


def everything(dataset):
    (batch,) = dataset.__getitems__(list(range(len(dataset))))
    return batch


@pytest.mark.parametrize("place", ["train.txt", "criteo/train.txt"])
def test_the_file_is_found_in_either_place_and_the_store_lies_beside_it(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    write(path, ROWS)
    data = criteo(data_dir=tmp_path, min_count=2)
    assert {p.name for p in path.parent.iterdir()} == {"train.txt", ".tgeokd-cache"}
    ids = torch.cat([everything(split)[2] for split in (data.train, data.held_out, data.test)])
    assert sorted(ids.tolist()) == list(range(900))
    for split in (data.train, data.held_out, data.test):
        _, target, ids = everything(split)
        assert target.tolist() == [int(ROWS[i][0]) for i in ids]
    assert data.inputs == data.encoder.inputs
    assert data.num_classes == 2
    assert data.corrupted is None
    assert data.metrics.primary == "auc"
    notes = json.loads(json.dumps(data.notes))
    assert notes["rows"] == 900
    assert notes["missing_values"] == sum(field == "" for row in ROWS for field in row)
    assert notes["codes"] == sum(data.inputs.categories)
    assert notes["values_without_a_code"]["test"] == int((everything(data.test)[0][1] == 1).sum())


def test_options_reach_the_data(tmp_path):
    write(tmp_path / "day_0", [*ROWS, ["1"]])
    data = criteo(
        data_dir=tmp_path, file="day_0", rows=850, seed=1, noise=0.2, held_out=0.3, test=0.2, bad_rows="skip",
        min_count=5, cache=str(tmp_path / "elsewhere"),
    )  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"day_0", "elsewhere"}
    _, target, ids = everything(data.train)
    wrong = torch.tensor([int(ROWS[i][0]) for i in ids]) != target
    assert torch.equal(data.corrupted, wrong)
    assert 0.1 < wrong.double().mean() < 0.3
    assert data.notes["rows"] == 850
    assert 200 < len(data.held_out) < 310
    for split in (data.held_out, data.test):
        _, target, ids = everything(split)
        assert target.tolist() == [int(ROWS[i][0]) for i in ids]


def test_a_saved_encoder_gives_a_user_s_rows_the_codes_of_the_task(tmp_path):
    import polars as pl

    path = write(tmp_path / "train.csv", ROWS, "csv")
    data = criteo(data_dir=tmp_path, file="train.csv", min_count=2)
    encoder = CriteoEncoder.from_dict(json.loads(json.dumps(data.encoder.to_dict())))
    _, codes = encoder.transform(pl.read_csv(path, infer_schema=False), source="train.csv")
    for split in (data.train, data.test):
        (_, categorical), _, ids = everything(split)
        assert torch.equal(codes[ids], categorical)


def test_files_and_folders_that_are_not_there_are_named(tmp_path):
    with refused("criteo/train.txt", "train.txt"):
        criteo(data_dir=tmp_path)
    with refused("data_dir", "generated"):
        criteo()
    with refused("generated", "not 0"):
        criteo(generated=0)
    (tmp_path / "file").touch()
    with refused("file/below"):
        criteo(generated=10, cache=str(tmp_path / "file" / "below"))


def test_the_best_possible_numbers_of_generated_rows_are_known(generated):
    data = criteo(**generated, seed=5)
    path = Path(generated["cache"]) / f"generated-20000-v{GENERATOR_VERSION}.txt"
    made = path.stat().st_mtime_ns
    other = criteo(**generated, seed=6)  # another split of the same file
    assert path.stat().st_mtime_ns == made
    assert not torch.equal(everything(data.test)[2][:100], everything(other.test)[2][:100])

    _, target, ids = everything(data.test)
    p = np.load(f"{path}.probability.npy")[ids]
    assert data.notes["best_possible"]["auc"] == pytest.approx(roc_auc_score(target, p))
    assert data.notes["best_possible"]["nll"] == pytest.approx(log_loss(target, p))
    assert 0.78 < data.notes["best_possible"]["auc"] < 0.83


def test_generated_rows_lie_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert criteo(generated=500).notes["rows"] == 500
    assert (tmp_path / "tgeokd" / "criteo" / f"generated-500-v{GENERATOR_VERSION}.txt").is_file()


def test_a_model_learns_from_generated_rows_and_stays_below_the_best_possible(generated):
    data = criteo(**generated)
    torch.manual_seed(0)
    model = build_model("wide_deep", inputs=data.inputs, num_classes=2, embedding=4, hidden=(16,))
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for _ in range(2):
        for inputs, target, _ in data.training_loader(256):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(*inputs), target).backward()
            optimizer.step()
    inputs, target, _ = everything(data.test)
    with torch.no_grad():
        found = data.metrics(model(*inputs), target)
    assert 0.65 < found["auc"] < data.notes["best_possible"]["auc"]
    assert found["nll"] > data.notes["best_possible"]["nll"]
