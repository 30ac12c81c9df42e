"""Text tables that are not plain comma-separated UTF-8: read as their author meant, or refused with a way out."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import polars as pl
import pytest
from refusals import refused

from tgeokd.data.tables.dialect import TextFormat
from tgeokd.data.tables.reader import read_table
from tgeokd.data.tasks.tabular import tabular
from tgeokd.data.tasks.text import _read as read_texts


def _table(folder, content, name="t.csv", bad_rows="error", **text):
    content = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(content)
    return read_table(folder / name, source=name, bad_rows=bad_rows, text=TextFormat(**text))


def _values(folder, content, name="t.csv", **text):
    return _table(folder, content, name, **text).frame.to_dict(as_series=False)


# ---- separators, decimals and encodings

BANK = '"age";"job";"euribor";"y"\n30;"blue-collar";1,313;"no"\n39;"services";4,8;"yes"\n25;"services";4,962;"no"\n'


def test_semicolons_with_decimal_commas_are_found_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tgeokd")
    table = _table(tmp_path, BANK)
    assert table.frame.columns == ["age", "job", "euribor", "y"]
    assert table.frame["euribor"].to_list() == [1.313, 4.8, 4.962]
    assert table.format["separator"] == ";"
    assert table.format["decimal"] == ","
    assert "semicolon" in caplog.text
    assert "decimal comma" in caplog.text
    assert "euribor" in caplog.text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt"])
def test_separators_are_found(tmp_path, separator, name):
    rows = [["a", "b"], ["1.5", "x y"], ["2", "z"]]
    content = "\n".join(separator.join(row) for row in rows)
    assert _values(tmp_path, content, name) == {"a": [1.5, 2.0], "b": ["x y", "z"]}
    assert _values(tmp_path, content, name, separator=separator) == {"a": [1.5, 2.0], "b": ["x y", "z"]}


def test_a_line_of_excel_names_the_separator(tmp_path):
    assert _values(tmp_path, "sep=;\r\na;b\r\n1,5;x\r\n") == {"a": [1.5], "b": ["x"]}


def test_two_separators_that_fit_are_refused_and_either_can_be_given(tmp_path):
    content = "a,b;c\n1,2;3\n4,5;6\n"
    with refused("t.csv", "comma", "semicolon", "separator"):
        _values(tmp_path, content)
    assert _values(tmp_path, content, separator=",")["a"] == [1, 4]
    assert _values(tmp_path, content, separator=";")["c"] == [3, 6]


@pytest.mark.parametrize("separator", ["", ",,", "\n", '"', "é"])
def test_impossible_separators(separator):
    with refused("separator", repr(separator)):
        TextFormat(separator=separator)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_with_a_byte_order_mark_are_found(tmp_path, encoding):
    table = _table(tmp_path, "stadt\tx\nKöln\t1\nŁódź\t2\n".encode(encoding), "t.txt")
    assert table.frame.to_dict(as_series=False) == {"stadt": ["Köln", "Łódź"], "x": [1, 2]}
    assert table.format["encoding"].startswith(encoding[:5])


def test_latin_1_is_asked_for_and_read_when_given(tmp_path):
    content = "stadt,x\nBonn,1\nKöln,2\n".encode("latin-1")
    with refused("t.csv", "0xf6", "line 3", "encoding=latin-1"):
        _values(tmp_path, content)
    assert _values(tmp_path, content, encoding="latin-1")["stadt"] == ["Bonn", "Köln"]
    with refused("t.csv", "0xf6", "line 1", "encoding=latin-1"):
        _values(tmp_path, "größe,x\n1,2\n".encode("latin-1"))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_a_row_of_the_wrong_length_that_is_not_utf8_is_one_error(tmp_path, bad_rows):
    (tmp_path / "t.csv").write_bytes("stadt,x,y\nBonn,1,2\nKöln,2\n".encode("latin-1"))
    with refused("t.csv", "0xf6", "line 3", "encoding=latin-1"):
        read_table(tmp_path / "t.csv", bad_rows=bad_rows)


@pytest.mark.parametrize(
    ("content", "encoding", "mentioned"),
    [
        ("a,b\nKöln,1\n".encode(), "latin-1", ("latin-1", "UTF-8")),
        ("a,b\n5 €,1\n".encode("cp1252"), "latin-1", ("latin-1", "cp1252")),
        ("a,b\n5,1\n".encode("utf-16"), "utf-8", ("utf-8", "utf-16-le")),
        ("a,b\n5,1\n".encode("utf-16-le"), None, ("utf-16-le",)),
        ("a,b\n5,1\n".encode("utf-16-le"), "utf-16", ("utf-16-le", "utf-16-be")),
        ("a,b\nKöln,1\n".encode("latin-1"), "ascii", ("ascii",)),
        (b"a,b\n5,1\n", "latin-99", ("latin-99",)),
    ],
)
def test_wrong_encodings(tmp_path, content, encoding, mentioned):
    with refused(*mentioned):
        _values(tmp_path, content, encoding=encoding)


@pytest.mark.parametrize("keep", [40, -1])
def test_a_damaged_gzip_file(tmp_path, keep):
    content = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(1000)))
    with refused("t.csv.gz", "gzip"):
        _values(tmp_path, content[:keep], "t.csv.gz")
    with refused("t.csv.gz", "gzip"):
        _values(tmp_path, content[:100] + b"\0\0\0" + content[103:], "t.csv.gz")


# ---- headers and quotation marks


def test_a_line_end_in_a_quoted_name(tmp_path):
    content = '"net\nincome",b\n1,x\n2,y\n'
    table = _table(tmp_path, content)
    assert table.frame.to_dict(as_series=False) == {"net income": [1, 2], "b": ["x", "y"]}
    assert table.rows.tolist() == [0, 1]
    with refused("row 1", "'3'"):
        _table(tmp_path, '"net\r\nincome",b\r\n1,x\r\n3\r\n')


@pytest.mark.parametrize(
    "lines",
    [
        ["5.1,3.5,1.4,setosa", "4.9,3.0,1.4,setosa", "6.1,3.1,4.2,virginica", "6.2,3.0,4.1,virginica"],
        ["39,77516,13,Male", "50,83311,13,Male", "38,215646,9,Female", "39,215646,9,Female"],
        ["red,yes", "red,no", "blue,yes", "blue,no", "red,no"],
    ],
)
def test_a_first_row_that_looks_like_data(tmp_path, lines):
    content = "\n".join(lines) + "\n"
    with refused("t.csv", "first line", lines[0].split(",")[0]):
        _table(tmp_path, content)


@pytest.mark.parametrize("header", ["0,1,2", "1,2,3", "2019,2020,2021", ",2019,2020", "a,0.5,0.7", "x,y,z"])
def test_names_that_are_numbers(tmp_path, header):
    assert _table(tmp_path, f"{header}\n4,5,6\n7,8,9\n").frame.columns == header.split(",")


def test_an_unmatched_quotation_mark(tmp_path):
    rows = [f"{i},pipe,{i * 7}" for i in range(20)]
    for start, end in ((5, 12), (5, None)):  # closed by the mark of a later row, and not at all
        bad = list(rows)
        bad[start] = '5,"5 inch pipe,35'
        if end is not None:
            bad[end] = '12,"6 inch pipe,84'
        for bad_rows in ("error", "skip"):
            with refused("row 5", "t.csv", "quotation mark"):
                _table(tmp_path, "\n".join(["a,b,c", *bad]), bad_rows=bad_rows)
    bad = list(rows)
    bad[5], bad[7] = '5,"pipe,35', '7,pipe",49'  # as well-formed as a text over three lines
    with refused("row 5", "t.csv", "quotation mark"):
        _table(tmp_path, "\n".join(["a,b,c", *bad]))


def test_marks_and_lines_within_values_are_kept(tmp_path):
    content = (
        'text,label\n"good, but\nnot great, really",1\n"one ""quoted"" word\n\nand more",0\n5" pipe,1\nand 6" too,0\n'
    )
    found = _values(tmp_path, content)
    assert found["text"] == ["good, but\nnot great, really", 'one "quoted" word\n\nand more', '5" pipe', 'and 6" too']
    assert found["label"] == [1, 0, 1, 0]


def test_blanks_before_quotation_marks(tmp_path):
    content = 'a, "b", c\n1, "York, UK", "5"\n2, "he said, ""no""", 6\n'
    assert _values(tmp_path, content) == {"a": [1, 2], "b": ["York, UK", 'he said, "no"'], "c": [5, 6]}
    with refused("row 1", "2 values"):
        _values(tmp_path, 'a, "b", c\n1, "York, UK", "5"\n2, "x"\n')


# ---- numbers


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["1,234", "1,234,567", "12"], [1234, 1234567, 12]),
        (["1,234.50", "12.25"], [1234.5, 12.25]),
        (["950", "1,200", "-3,000"], [950, 1200, -3000]),
        (["$1,234", "$12", "-$5"], [1234, 12, -5]),
        (["12 %", "7.5%", "0 %"], [12, 7.5, 0]),
        (["1'234.5", "12"], [1234.5, 12]),
        (["3 €", "4 €"], [3, 4]),
        (["5 %", "", "NA"], [5, None, None]),
    ],
)
def test_numbers_of_one_clear_format(tmp_path, cells, numbers):
    content = "a,b\n" + "".join(f'"{cell}",x\n' for cell in cells)
    table = _table(tmp_path, content)
    assert table.frame["a"].to_list() == numbers
    assert cells[0] in table.format["numbers"]["a"]
    text = _table(tmp_path, content, verbatim=("a",)).frame["a"]
    assert text.dtype == pl.String
    assert text[0] == cells[0]


@pytest.mark.parametrize(
    ("cells", "mentioned"),
    [
        (["1,234", "2,500"], ("1234", "1.234", "data.decimal")),
        (["1,5", "2"], ("1,5", "data.decimal", "categorical")),
        (["$5", "6", "7"], ("row 1", "'6'", "categorical")),
        (["12 %", "13 $"], ("row 1", "13 $")),
        (["1,234.5", "1.234,5"], ("1,234.5", "1.234,5")),
        (["1,234,567", "1234", "5"], ("row 1", "'1234'")),
        (["$1"] * 20 + ["one"], ("row 20", "'one'", "categorical")),
    ],
)
def test_numbers_without_one_clear_format(tmp_path, cells, mentioned):
    content = "a,b\n" + "".join(f'"{cell}",x\n' for cell in cells)
    with refused("t.csv", "'a'" if "row" not in mentioned[0] else "column a", *mentioned):
        _table(tmp_path, content)
    assert _values(tmp_path, content, verbatim=("a",))["a"] == cells


def test_another_column_tells_what_a_comma_is(tmp_path):
    assert _values(tmp_path, 'a,b\n"1,234",0.5\n"2,500",1\n')["a"] == [1234, 2500]
    assert _values(tmp_path, "a;b\n1,234;0,5\n2,500;1\n")["a"] == [1.234, 2.5]
    assert _values(tmp_path, "a;b\n1.234;0,5\n2.500;1\n")["a"] == [1234, 2500]
    with refused("'a'", "0,25", "'b'", "0.5", "data.decimal"):
        _values(tmp_path, "a;b\n0,25;0.5\n2,5;1\n")
    for content in ("a;b\n1.234;x\n2.500;y\n", "a;b\n1,234;x\n2,500;y\n"):
        with refused("'a'", "1234", "1.234", "data.decimal"):
            _values(tmp_path, content)
        for mark in ".,":
            scale = 1 if mark in content else 1000
            assert _values(tmp_path, content, decimal=mark)["a"] == [1.234 * scale, 2.5 * scale]


def test_text_that_only_resembles_numbers_stays_text(tmp_path):
    columns = {
        "day": ["12.03.2020", "13.03.2020"],
        "ip": ["10.0.0.1", "192.168.1.20"],
        "zip": ["01234", "00501"],
        "list": ["1,2,3", "2,3"],
        "phone": ["555 123", "555 124"],
        "id": ["12345678901234567890", "12345678901234567891"],
    }
    rows = zip(*columns.values(), strict=True)
    content = "\n".join([",".join(columns), *(",".join(f'"{cell}"' for cell in row) for row in rows)])
    assert _values(tmp_path, content) == columns


# ---- missing words


def test_a_quoted_missing_word_is_a_value_among_words_only(tmp_path):
    content = 'country,x,y\n"NA","1",NA\n"DE","NA",NA\nNA,"3","NA"\n"",4,\n'
    table = _table(tmp_path, content)
    assert table.frame["country"].to_list() == ["NA", "DE", None, None]
    assert table.frame["x"].to_list() == [1, None, 3, 4]
    assert table.words["country"] == {"NA": 1}
    assert table.words["x"] == {"NA": 1}


def test_missing_words_are_configurable(tmp_path):
    content = "country,x\nNA,-999\n-,2\nDE,NA\n"
    assert _values(tmp_path, content)["country"] == [None, "-", "DE"]
    assert _values(tmp_path, content, missing=["-", "-999"]) == {"country": ["NA", None, "DE"], "x": [None, "2", "NA"]}
    with refused("missing", "'NA'"):
        TextFormat(missing="NA")


def _labelled(folder, labels, **options):
    lines = ["x,y", *(f"{i % 7}.5,{labels[i % len(labels)]}" for i in range(120))]
    (folder / "t.csv").write_text("\n".join(lines))
    return tabular(data_dir=folder, file="t.csv", label="y", **options)


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_a_class_is_not_lost_without_a_question(tmp_path, bad_rows):
    with refused("'y'", "t.csv", "'NA'", "40 rows", "data.missing"):
        _labelled(tmp_path, ["NA", "DE", "FR"], bad_rows=bad_rows)
    task = _labelled(tmp_path, ["NA", "DE", "FR"], bad_rows=bad_rows, missing=())
    assert task.class_names == ("DE", "FR", "NA")
    assert _labelled(tmp_path, ['"NA"', "DE", "FR"], bad_rows=bad_rows).class_names == ("DE", "FR", "NA")
    task = _labelled(tmp_path, ["NA", "DE", "FR"], bad_rows="skip", missing=("NA",))
    assert task.class_names == ("DE", "FR")
    assert task.notes["rows"]["left out"] == 40


# ---- tasks


def test_options_and_findings_reach_the_task(tmp_path):
    draw = np.random.default_rng(0)
    lines = [
        "größe;preis;klasse",
        *(f"{v:.4f};{v * 1e4:.0f} €;{i % 2} %".replace(".", ",") for i, v in enumerate(draw.random(60))),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="cp1252")
    task = tabular(data_dir=tmp_path, file="t.csv", label="klasse", encoding="cp1252")
    assert task.notes["numeric"] == ["größe", "preis"]
    assert task.class_names == ("0 %", "1 %")
    how = task.notes["read as"]["t.csv"]
    assert (how["separator"], how["decimal"], how["encoding"]) == (";", ",", "cp1252")
    assert set(how["numbers"]) == {"größe", "preis"}


def test_a_test_file_is_read_like_the_training_file_where_it_does_not_tell(tmp_path):
    lines = ["a;b", *(f"{i},{i % 10}25;{'yn'[i % 2]}" for i in range(1, 41))]
    (tmp_path / "train.csv").write_text("\n".join([*lines, "0,5;y"]))
    (tmp_path / "test.csv").write_text("a;b\n1,125;y\n2,225;n\n")
    task = tabular(data_dir=tmp_path, file="train.csv", test_file="test.csv", label="b")
    column = task.encoder.numeric[0]
    assert task.test.inputs[0][:, 0].numpy() * column.sd + column.mean == pytest.approx([1.125, 2.225], abs=1e-4)


def test_texts_are_left_as_they_are(tmp_path):
    (tmp_path / "t.csv").write_text('text,label\n"$5",a\n"12",b\n"1,5",a\n')
    table = read_texts(tmp_path / "t.csv", ["text", "label"], "error", TextFormat(verbatim="all"))
    assert table.frame["text"].to_list() == ["$5", "12", "1,5"]


# ---- folders of parts


def _part(path, values, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"x": values, **more}).write_parquet(path)


def test_a_folder_of_parts_is_one_table(tmp_path):
    for name, values in (
        ("part-00001-ab.snappy.parquet", [3]),
        ("part-00000-ab.snappy.parquet", [1, 2]),
        ("part-00002", [4]),
    ):
        _part(tmp_path / "t" / name, values)
    (tmp_path / "t" / "_SUCCESS").touch()
    (tmp_path / "t" / ".part-00000-ab.snappy.parquet.crc").write_bytes(b"crc")
    table = read_table(tmp_path / "t", source="t")
    assert table.frame["x"].to_list() == [1, 2, 3, 4]
    assert (table.rows.tolist(), table.total, table.source) == ([0, 1, 2, 3], 4, "t")
    _part(tmp_path / "t" / "part-00002", [5])
    assert read_table(tmp_path / "t").sha256 != table.sha256


def test_folders_of_partitions_become_a_column_of_text(tmp_path):
    _part(tmp_path / "t" / "code=007" / "part-0.parquet", [1])
    _part(tmp_path / "t" / "code=12" / "part-0.parquet", [2])
    _part(tmp_path / "t" / "code=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet", [3])
    table = read_table(tmp_path / "t")
    assert table.frame.sort("x").to_dict(as_series=False) == {"x": [1, 2, 3], "code": ["007", "12", None]}


@pytest.mark.parametrize(
    ("more", "mentioned"),
    [
        (lambda f: (f / "notes.csv").write_text("a"), ("notes.csv",)),
        (lambda f: (f / "_temporary" / "0").mkdir(parents=True), ("_temporary",)),
        (lambda f: _part(f / "b=1" / "p.parquet", [1]), ("column=value",)),
        (lambda f: _part(f / "part-1.parquet", ["text"]), ("parts",)),
        (lambda f: _part(f / "part-1.parquet", [1], y=[2]), ("parts",)),
        (lambda f: (f / "part-1.parquet").write_bytes(b"no"), ("parts",)),
        (lambda f: (f / "part-0.parquet").unlink(), ("no Parquet",)),
    ],
)
def test_folders_that_are_no_table(tmp_path, more, mentioned):
    folder = tmp_path / "t"
    _part(folder / "part-0.parquet", [1])
    more(folder)
    with refused("t", *mentioned):
        read_table(folder)
