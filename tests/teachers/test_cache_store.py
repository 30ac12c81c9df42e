"""Stored logits on disk: what is read is what was written, and a cache is complete or absent."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgeokd.teachers import TeacherCache, TeacherCacheOptions
from tgeokd.teachers.cache.key import Samples
from tgeokd.teachers.cache.store import write_cache
from tgeokd.utils.errors import InputError

N, C, V = 12, 6, 3
IDS = torch.arange(N) * 5 + 2
KEY = {
    "teacher": "abc",
    "precision": "32-true",
    "preprocessing": "none",
    "augmentation": "none",
    "samples": "by sample",
}


def all_logits(seed=0):
    return torch.randn(V, N, C, generator=torch.Generator().manual_seed(seed)) * 5


def predictions(logits=None, size=5, wait=0.0, pipe=None):
    logits = all_logits() if logits is None else logits
    for view in range(len(logits)):
        for rows in torch.arange(logits.shape[1]).flip(0).split(size):
            if pipe is not None:
                pipe.send("batch")
            yield view, IDS[rows], logits[view, rows]
            time.sleep(wait)


def write(folder, batches=None, *, ids=IDS, digests=IDS * 7, num_classes=C, views=V, **options):
    batches = predictions() if batches is None else batches
    samples, options = Samples(ids, digests, None), TeacherCacheOptions(**options)
    return write_cache(folder, batches, samples, KEY, num_classes, views, options)


@pytest.mark.parametrize(("dtype", "bits"), [("fp32", 24), ("fp16", 11), ("bf16", 8)])
def test_lookup_returns_the_logits_that_were_written(tmp_path, dtype, bits):
    write(tmp_path / "cache", dtype=dtype)
    cache, logits = TeacherCache(tmp_path / "cache"), all_logits()
    order = torch.tensor([3, 0, 11, 3, 7])
    for view in range(V):
        found, expected = cache.lookup(IDS[order], view), logits[view, order]
        assert found.dtype == torch.float32
        assert ((found - expected).abs() <= expected.abs() * 2.0**-bits + (1e-7 if bits < 24 else 0)).all()
        assert torch.equal(cache.on_device(view, torch.device("cpu"))(IDS[order]), found)
    assert (len(cache), cache.views, cache.num_classes, cache.dtype) == (N, V, C, dtype)


def test_the_file_is_memory_mapped(tmp_path):
    write(tmp_path / "cache", dtype="fp32")
    cache = TeacherCache(tmp_path / "cache")
    with (tmp_path / "cache" / "logits.fp32").open("r+b") as file:
        file.write(torch.full((C,), 7.0).numpy().tobytes())
    assert (cache.lookup(IDS[:1]) == 7.0).all()


# ---- top k


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=12, unique=True),
    st.integers(1, 11),
    st.sampled_from([1.0, 1.5, 4.0, 20.0]),
)
@settings(max_examples=15, deadline=None)
def test_top_k_keeps_the_total_probability_of_the_others_which_bounds_the_error_at_any_temperature(
    tmp_path_factory, row, k, temperature
):
    c, k = len(row), min(k, len(row) - 1)
    logits = torch.tensor([[row]])
    options = {"ids": IDS[:1], "digests": None, "num_classes": c, "views": 1, "dtype": "fp32", "top_k": k}
    folder = tmp_path_factory.mktemp("top") / "cache"
    cache = write(folder, [(0, IDS[:1], logits[0])], **options)
    found, true = cache.lookup(IDS[:1])[0].double(), logits[0, 0].double()
    kept = true.topk(k).indices

    probs, exact = found.softmax(-1), true.softmax(-1)
    assert torch.allclose(probs[kept], exact[kept], rtol=1e-4, atol=1e-12)  # exact at temperature 1
    assert torch.isclose(probs.sum(), torch.ones((), dtype=torch.float64))
    others = torch.ones(c, dtype=torch.bool)
    others[kept] = False
    assert len(found[others].unique()) == 1

    soft, softer = (found / temperature).softmax(-1), (true / temperature).softmax(-1)
    apart = (soft - softer).abs().sum() / 2
    assert apart <= soft[others].sum() + 1e-6
    assert softer[others].sum() <= soft[others].sum() + 1e-6


def test_top_k_of_as_many_classes_as_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"top_k.* 6"):
        write(tmp_path / "cache", top_k=C)


def test_top_k_of_many_classes_is_small(tmp_path):
    logits = torch.randn(1, N, 5000, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "cache", predictions(logits), num_classes=5000, views=1, top_k=10)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) < N * 100 + 2000


# ---- what is refused


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("teacher", "teacher weights"),
        ("precision", "precision"),
        ("preprocessing", "preprocessing"),
        ("augmentation", "augmentation"),
        ("samples", "samples"),
    ],
)
def test_each_field_of_the_key_makes_it_stale(tmp_path, field, name):
    cache = write(tmp_path / "cache")
    cache.check(KEY, TeacherCacheOptions(), C, V)
    with pytest.raises(InputError, match=f"stale.* {name}: {KEY[field]}.* new"):
        cache.check(KEY | {field: "new"}, TeacherCacheOptions(), C, V)


@pytest.mark.parametrize(
    ("options", "classes", "views", "message"),
    [
        ({}, C + 1, V, "classes: 6.* 7"),
        ({}, C, V + 1, "views: 3.* 4"),
        ({"dtype": "fp32"}, C, V, "dtype: fp16.* fp32"),
        ({"top_k": 2}, C, V, "top_k: None.* 2"),
    ],
)
def test_another_shape_makes_it_stale(tmp_path, options, classes, views, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "cache").check(KEY, TeacherCacheOptions(**options), classes, views)


def test_other_samples_make_it_stale_and_fewer_do_not(tmp_path):
    cache = write(tmp_path / "cache")
    some = torch.tensor([4, 1, 1])
    cache.check_samples(Samples(IDS[some], IDS[some] * 7, None))
    with pytest.raises(InputError, match="sample 3;"):
        cache.check_samples(Samples(torch.tensor([2, 3]), torch.tensor([14, 21]), None))
    with pytest.raises(InputError, match="inputs of sample 7 "):
        cache.check_samples(Samples(torch.tensor([2, 7]), torch.tensor([14, 50]), None))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "fp32", "sample 2 "),
        (float("inf"), "fp16", "sample 2 "),
        (1e5, "fp16", "fp16.* bf16"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(tmp_path, value, dtype, message):
    logits = all_logits()
    logits[1, 0, 3] = value
    with pytest.raises(InputError, match=message):
        write(tmp_path / "cache", predictions(logits), dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == [".cache.lock"]


def test_a_sample_without_logits_is_refused(tmp_path):
    with pytest.raises(InputError, match="sample 2 in view 2"):
        write(tmp_path / "cache", list(predictions())[:-1])
    assert not (tmp_path / "cache").exists()


def test_different_logits_for_one_id_are_refused(tmp_path):
    logits = all_logits()
    twice = [*predictions(logits), (0, IDS[:1], logits[0, 1:2])]
    with pytest.raises(InputError, match="id 2 "):
        write(tmp_path / "cache", twice)
    write(tmp_path / "cache", [*predictions(logits), (0, IDS[:1], logits[0, :1])])


def test_a_folder_with_other_files_is_left_alone_and_the_teacher_is_not_queried(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").touch()
    batches = iter([1])
    with pytest.raises(InputError, match="cache"):
        write(tmp_path / "cache", batches)
    assert next(batches) == 1
    assert (tmp_path / "cache" / "thesis.tex").exists()


def test_a_damaged_cache_is_refused(tmp_path):
    folder = tmp_path / "cache"
    with pytest.raises(InputError, match=r"cache\.json"):
        TeacherCache(folder)
    write(folder)
    with (folder / "logits.fp16").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match=r"logits\.fp16 has 100 bytes, not 432"):
        TeacherCache(folder)
    content = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(InputError, match=r"format 99.* 2"):
        TeacherCache(folder)
    (folder / "cache.json").write_text("{")
    with pytest.raises(InputError, match=r"cache\.json"):
        TeacherCache(folder)


def test_a_cache_that_exists_is_returned_also_from_a_folder_without_a_lock(tmp_path):
    write(tmp_path / "cache")
    (tmp_path / ".cache.lock").unlink(missing_ok=True)
    batches = iter([1])
    assert len(write(tmp_path / "cache", batches)) == N
    assert next(batches) == 1
    assert not (tmp_path / ".cache.lock").exists()


@pytest.mark.parametrize("name", ["cache.json", "ids.i64", "logits.fp16", "classes.i32", "others.fp32"])
@given(data=st.data())
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damaged") / "cache"
    made = write(folder, top_k=2)
    expected = made.lookup(IDS)
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    try:
        found = TeacherCache(folder).lookup(IDS)
    except InputError:
        return
    assert name == "cache.json"  # blanks between the entries, or "format": 1, mean nothing
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"format": 2}', '{"format": 1}', "[" * 100_000, '{"format": 1, "key": 3}']
)
def test_readable_rubbish_is_refused(tmp_path, text):
    folder = tmp_path / "cache"
    write(folder)
    (folder / "cache.json").write_text(text)
    with pytest.raises(InputError, match=r"cache\.json"):
        TeacherCache(folder)


def test_the_format_on_disk_is_the_one_of_earlier_versions(tmp_path):
    """Written by hand as format 1 says."""
    folder, logits = tmp_path / "cache", all_logits()[:1].half()
    folder.mkdir()
    description = {"format": 1, "key": KEY, "samples": N, "digests": False, "classes": C, "views": 1}
    (folder / "cache.json").write_text(json.dumps(description | {"dtype": "fp16", "top_k": None}))
    (folder / "ids.i64").write_bytes(IDS.numpy().tobytes())
    (folder / "logits.fp16").write_bytes(logits.numpy().tobytes())
    assert torch.equal(TeacherCache(folder).lookup(IDS), logits[0].float())


# ---- a crash and two writers, with real processes


def child(folder, wait, pipe):
    pipe.send("start")
    made = write(folder, predictions(wait=wait, pipe=pipe))
    pipe.send("right" if torch.equal(made.lookup(IDS, 2), all_logits()[2].half().float()) else "wrong")


def writer(folder, wait):
    fork = multiprocessing.get_context("fork")  # starting afresh takes seconds, for the imports
    ours, theirs = fork.Pipe()
    process = fork.Process(target=child, args=(folder, wait, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "start"
    return process, ours


def received(pipe):
    """All messages of a process until it ended."""
    words = []
    while pipe.poll(60):
        try:
            words.append(pipe.recv())
        except EOFError:
            return words
    raise TimeoutError


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_writer_killed_with_signal_9_leaves_nothing_and_one_of_two_others_takes_over(tmp_path):
    folder = tmp_path / "cache"
    killed, pipe = writer(folder, 60)
    assert pipe.recv() == "batch"
    (first, first_pipe), (second, second_pipe) = writer(folder, 0.01), writer(folder, 0.01)
    time.sleep(0.3)
    assert [first_pipe.poll(), second_pipe.poll()] == [False, False]  # they wait
    assert len(list(tmp_path.glob(".cache.*.tmp/logits.fp16"))) == 1
    assert not folder.exists()

    os.kill(killed.pid, signal.SIGKILL)
    words = sorted([received(first_pipe), received(second_pipe)], key=len)
    assert words == [["right"], ["batch"] * 9 + ["right"]]
    for process in (killed, first, second):
        process.join(60)
    assert [killed.exitcode, first.exitcode, second.exitcode] == [-signal.SIGKILL, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache.lock", "cache"]


def test_without_locks_the_first_to_finish_gives_the_folder_its_name(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    folder = tmp_path / "cache"

    def interrupted():
        yield from predictions()
        write(folder, predictions(all_logits(seed=1)))

    assert torch.equal(write(folder, interrupted()).lookup(IDS), all_logits(seed=1)[0].half().float())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
