"""Small files that become large, and documents that exhaust the memory, are refused before they do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import time
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.data.images.reader import read_rgb
from tgeokd.data.tasks.cifar import CIFAR10
from tgeokd.data.tasks.cifar_archive import read_archive
from tgeokd.runs.config import load_config
from tgeokd.teachers.formats import read_predictions
from tgeokd.utils.documents import parse_json, parse_yaml, read_json_object
from tgeokd.utils.errors import InputError
from tgeokd.utils.limits import MIB, Limits, check_zip, expand
from tgeokd.utils.parquet import read_parquet


def zeros(mib, compress):
    return compress(bytes(mib * MIB))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_becomes_too_large_is_refused(monkeypatch, compress):
    monkeypatch.setenv("TGEOKD_MAX_EXPANDED_MIB", "4")
    monkeypatch.setenv("TGEOKD_MAX_EXPANDED_RATIO", "1")
    assert len(expand(zeros(3, compress), "x")) == 3 * MIB
    with pytest.raises(InputError, match="TGEOKD_MAX_EXPANDED_MIB"):
        expand(zeros(6, compress), "x")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@given(data=st.data())
def test_no_damage_of_a_compressed_file_goes_unnoticed(compress, data):
    text = b"".join(b"%d,%d\n" % (i, i * i) for i in range(300))
    content = bytearray(compress(text))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(6, len(content) - 1))]
    else:
        content[data.draw(st.integers(6, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = expand(bytes(content), "x")
    except InputError:
        return
    assert found == text  # the time and the name in a header mean nothing


def test_a_limit_must_be_a_number(monkeypatch):
    monkeypatch.setenv("TGEOKD_MAX_NESTING", "many")
    with pytest.raises(InputError, match="TGEOKD_MAX_NESTING"):
        Limits.current()


def test_an_archive_of_images_with_a_huge_member_or_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TGEOKD_MAX_EXPANDED_MIB", "8")
    for name, headers in (("data", {}), ("header", {"comment": "x" * (20 * MIB)})):
        path = tmp_path / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
            entry = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            entry.pax_headers = headers
            content = bytes(0 if headers else 20 * MIB)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        with pytest.raises(InputError, match="EXPANDED_MIB"):
            read_archive(CIFAR10.archive, path, "any")


def test_a_zip_archive_that_becomes_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TGEOKD_MAX_EXPANDED_MIB", "4")
    path = tmp_path / "p.npz"
    np.savez_compressed(path, ids=np.arange(4), probs=np.zeros((4, 2 * MIB)))
    with pytest.raises(InputError, match="EXPANDED_MIB"):
        read_predictions(path)
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
        archive.writestr("a", b"a")
    check_zip(tmp_path / "small.zip")


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
DOCUMENTS = {
    "aliases": ALIASES,
    "itself": "a: &a [*a]",
    "nested lists": "[" * 3000 + "]" * 3000,
    "nested mappings": "".join(f"{' ' * i}a:\n" for i in range(200)),
    "python": "!!python/object/apply:os.system ['touch canary']",
    "no date": "a: 2024-99-99",
    "a list as a key": "? [1, 2]\n: 3",
    "large": "a: " + "x" * (2 * MIB),
    "tabs": "a:\n\t- b",
    "a huge number": "a: " + "9" * 5000,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_yaml_file_is_refused_at_once(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, started = tmp_path / "config.yaml", time.monotonic()
    path.write_text(DOCUMENTS[name])
    with pytest.raises(InputError, match=r"config\.yaml"):
        load_config(path)
    assert time.monotonic() - started < 20
    assert not (tmp_path / "canary").exists()


def test_aliases_are_allowed():
    assert parse_yaml("a: &x {lr: 1}\nb: *x", "x") == {"a": {"lr": 1}, "b": {"lr": 1}}


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "nul", "9" * 5000, ""])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(InputError, match=r"r\.json"):
        parse_json(text, "r.json")


def test_another_kind_of_json_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="list"):
        read_json_object(path)


def png(width, height):
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2)])
def test_an_image_of_too_many_pixels_is_refused(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size))
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_rgb(path)


@given(data=st.data())
def test_a_damaged_parquet_file_raises_input_errors_only(data, tmp_path_factory):
    pl = pytest.importorskip("polars")
    folder = tmp_path_factory.mktemp("parquet")
    pl.DataFrame({"id": range(50), "c": ["a", "bb"] * 25}).write_parquet(folder / "t.parquet")
    content = bytearray((folder / "t.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "t.parquet").write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    with suppress(InputError):
        read_parquet(folder / "t.parquet", "t.parquet")


def test_a_parquet_file_that_declares_too_much_is_refused(tmp_path, monkeypatch):
    pl = pytest.importorskip("polars")
    monkeypatch.setenv("TGEOKD_MAX_EXPANDED_MIB", "1")
    monkeypatch.setenv("TGEOKD_MAX_EXPANDED_RATIO", "1")
    pl.DataFrame({"a": np.random.default_rng(0).random(400_000).round(0)}).write_parquet(
        tmp_path / "t.parquet", compression="zstd", use_pyarrow=True, pyarrow_options={"use_dictionary": False}
    )
    with pytest.raises(InputError, match="EXPANDED_MIB"):
        read_parquet(tmp_path / "t.parquet", "t.parquet")
