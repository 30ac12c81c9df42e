from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest
from criteo_rows import COLUMNS, make_rows, write
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from tgeokd.data.tasks.criteo.reader import CATEGORIES, INTEGERS, RawFile

ROWS = make_rows(400)
BLOCK = 6000  # bytes: some twenty rows


def read(raw: RawFile) -> tuple[list[int], list[list[str]]]:
    """Row numbers and fields as they were written."""
    numbers, rows = [], []
    for block in raw:
        assert block.rows.dtype == np.int64
        assert block.label.dtype == np.uint8
        assert tuple(block.frame.columns) == (*INTEGERS, *CATEGORIES)
        numbers += block.rows.tolist()
        for label, fields in zip(block.label, block.frame.iter_rows(), strict=True):
            integers = ["" if v is None else f"{v:.0f}" for v in fields[:13]]
            rows.append([str(label), *integers, *("" if v is None else v for v in fields[13:])])
    return numbers, rows


@pytest.mark.parametrize("form", ["tab", "tab.gz", "csv"])
@pytest.mark.parametrize("block_bytes", [BLOCK, 1 << 23])
def test_every_raw_format_gives_the_rows_that_were_written(tmp_path, form, block_bytes):
    path = write(tmp_path / f"train.{form}", ROWS, form)
    raw = RawFile(path, block_bytes=block_bytes)
    assert read(raw) == (list(range(400)), ROWS)
    assert read(raw) == (list(range(400)), ROWS)  # any number of times
    assert not raw.skipped


def test_blocks_are_no_larger_than_asked_for(tmp_path):
    path = write(tmp_path / "train.txt", ROWS)
    shortest = min(len("\t".join(row)) + 1 for row in ROWS)
    sizes = [len(block.rows) for block in RawFile(path, block_bytes=BLOCK)]
    assert sum(sizes) == 400
    assert len(sizes) >= path.stat().st_size / BLOCK
    assert max(sizes) <= BLOCK / shortest


def test_the_format_found_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    RawFile(write(tmp_path / "day_0", ROWS))
    RawFile(write(tmp_path / "train.csv", ROWS, "csv"))
    assert ["no header" in message for message in caplog.messages] == [True, False]


def test_floats_that_are_whole_are_integers_as_the_challenge_s_csv_writes_them(tmp_path):
    rows = [[row[0], *(v and v + ".0" for v in row[1:14]), *row[14:]] for row in ROWS]
    assert read(RawFile(write(tmp_path / "train.csv", rows, "csv")))[1] == ROWS


def test_columns_of_a_csv_may_come_in_any_order_and_case(tmp_path):
    order = list(reversed(COLUMNS))
    lines = [",".join(["click_id", *order, "label"]).lower()]
    lines += [",".join(["x", *(row[1 + COLUMNS.index(name)] for name in order), row[0]]) for row in ROWS]
    path = tmp_path / "train.csv"
    path.write_text("\n".join(lines))
    assert read(RawFile(path))[1] == ROWS


@pytest.mark.parametrize("limit", [1, 57, 400, 1000])
def test_the_first_rows_alone(tmp_path, limit):
    raw = RawFile(write(tmp_path / "train.txt", ROWS), rows=limit, block_bytes=BLOCK)
    assert read(raw) == (list(range(400))[:limit], ROWS[:limit])


@pytest.mark.parametrize("form", ["tab", "csv"])
def test_a_file_to_predict_needs_no_labels(tmp_path, form):
    expected = [["0", *row[1:]] for row in ROWS]
    labelled = write(tmp_path / "labelled", [["?", *row[1:]] for row in ROWS], form)
    assert read(RawFile(labelled, labels=False, block_bytes=BLOCK)) == (list(range(400)), expected)
    lines = [row[1:] for row in ROWS] if form == "tab" else [COLUMNS, *(row[1:] for row in ROWS)]
    bare = tmp_path / "bare"
    bare.write_text("".join({"tab": "\t", "csv": ","}[form].join(line) + "\n" for line in lines))
    assert read(RawFile(bare, labels=False, block_bytes=BLOCK)) == (list(range(400)), expected)


WRONG = {
    "short": lambda row: row[:7],
    "long": lambda row: [*row, "x"],
    "empty": lambda row: [""],
    "label": lambda row: ["2", *row[1:]],
    "no label": lambda row: ["", *row[1:]],
    "integer": lambda row: [*row[:5], "1x", *row[6:]],
    "infinite": lambda row: [*row[:5], "inf", *row[6:]],
}
FAULTS = {"short": "fields", "long": "fields", "integer": "number", "infinite": "number"}


@given(
    wrong=st.dictionaries(st.integers(1, 299), st.sampled_from(sorted(WRONG)), max_size=40),
    limit=st.one_of(st.none(), st.integers(1, 320)),
)
def test_bad_rows_are_skipped_and_counted_and_the_others_keep_their_numbers(tmp_path_factory, wrong, limit):
    lines = [WRONG[wrong[i]](row) if i in wrong else row for i, row in enumerate(ROWS[:300])]
    path = write(tmp_path_factory.mktemp("bad") / "train.txt", lines)
    raw = RawFile(path, bad_rows="skip", rows=limit, block_bytes=BLOCK)
    good = [i for i in range(min(limit or 300, 300)) if i not in wrong]
    assert read(raw) == (good, [ROWS[i] for i in good])
    reasons = [FAULTS.get(kind, "label") for i, kind in wrong.items() if i < (limit or 300)]
    by_reason = {"fields": "wrong number of fields", "number": "an integer column is not a number"}
    expected = {by_reason.get(r, "label is not 0 or 1"): reasons.count(r) for r in reasons}
    assert dict(raw.skipped) == expected


@pytest.mark.parametrize(
    ("kind", "mentioned"),
    [
        ("short", ("fields", "4")),
        ("long", ("fields", "4")),
        ("label", ("label", "'2'")),
        ("no label", ("label", "''")),
        ("integer", ("column I5", "'1x'")),
        ("infinite", ("column I5", "'inf'")),
    ],
)
@pytest.mark.parametrize("form", ["tab", "csv"])
@pytest.mark.parametrize("at", [1, 250])
def test_the_first_bad_row_is_named_by_file_and_line(tmp_path, kind, mentioned, form, at):
    rows = [*ROWS[:at], WRONG[kind](ROWS[at]), *ROWS[at + 1 :]]
    path = write(tmp_path / "train.file", rows, form)
    line = at + (2 if form == "csv" else 1)
    with refused(path, f"line {line}", *mentioned):
        list(RawFile(path, block_bytes=BLOCK))


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        (b"", ("40",)),
        (b"\n1\t2\n", ("40",)),
        ("\t".join(ROWS[0][1:]).encode(), ("line 1", "39", "40")),
        (b"1\t2\t3\n", ("line 1", "3", "40")),
        (b"hello\n", ("line 1", "40")),
        (",".join(["Label", *COLUMNS]).replace(",C5", "").encode(), ("'C5'",)),
        (",".join(["click", *COLUMNS]).encode(), ("'label'",)),
        (",".join(["Label", *COLUMNS, "c5"]).encode(), ("line 1",)),
        (b"\xff\xfe\x00\x01\n", ()),
    ],
)
def test_another_format_is_refused_before_a_row_is_read(tmp_path, content, mentioned):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with refused(path, *mentioned):
        RawFile(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with refused("nowhere.txt"):
        RawFile(tmp_path / "nowhere.txt")
    broken = tmp_path / "broken.gz"
    text = "".join("\t".join(row) + "\n" for row in ROWS).encode()
    broken.write_bytes(gzip.compress(text)[:-20_000])
    with refused("broken.gz"):
        list(RawFile(broken))
    letters = tmp_path / "letters.txt"
    letters.write_bytes("\t".join(ROWS[0]).encode() + b"\n" + b"\t".join([b"1"] * 39 + [b"\xff"]) + b"\n")
    with refused("letters.txt", "UTF8"):
        list(RawFile(letters, bad_rows="skip"))


def test_an_impossible_number_of_rows_is_refused(tmp_path):
    with refused("rows", "not 0"):
        RawFile(write(tmp_path / "train.txt", ROWS), rows=0)
