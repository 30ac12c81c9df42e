"""Files that are made to run code, to exhaust the memory or the time, or to write outside their folder: all are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from tgeokd.data.images.reader import read_rgb
from tgeokd.data.tables.reader import read_table
from tgeokd.data.tasks.cifar_archive import read_archive
from tgeokd.models.weights import load_weights
from tgeokd.runs.config import load_config
from tgeokd.runs.results import RunResults
from tgeokd.teachers.cache.store import TeacherCache
from tgeokd.teachers.formats import read_predictions
from tgeokd.training.checkpoint import Checkpointer
from tgeokd.utils.errors import InputError
from tgeokd.utils.integrity import write_with_checksum
from tools.torture.children import run
from tools.torture.damage import CIFAR10, add_member, network
from tools.torture.interruptions import Undisturbed, folder
from tools.torture.report import Row

MIB = 1 << 20
SECONDS, MEMORY = 5.0, 1024 * MIB
Attack = tuple[str, Callable[[Path], Path], Callable[[Path], Any]]  # name, what writes the file, what reads it


def malicious(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """Each of them once, in a child; ``seconds`` and ``seed`` are not needed."""
    counts = Counter[str]()
    for name, make, read in attacks():
        with folder() as place:
            os.environ["TORTURE_CANARY"] = str(place / "canary")
            path = make(place)
            before = _listing(place)
            ended = run(partial(_refused, read, path), place / "log.txt")
            counts["done"] += 1
            fault = ended.last_line if ended.code != 0 else ""
            if _listing(place) != before:
                fault = "files were written"
            if fault:
                counts[f"{name}: {fault}"] += 1
    what = "malicious and oversized files: one line, nothing executed, below 1 GiB and 5 s"
    return Row(what, counts)


def _refused(read: Callable[[Path], Any], path: Path) -> None:
    started = time.monotonic()
    try:
        read(path)
    except InputError as error:
        text = str(error)
    else:
        _fault("it was accepted")
    seconds, memory = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if "\n" in text or len(text) > 1000:
        _fault(f"not one line, or {len(text)} letters")
    if seconds > SECONDS or memory > MEMORY:
        _fault(f"{seconds:.1f} s, {memory / MIB:,.0f} MiB")


def _fault(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(1)


def _listing(place: Path) -> list[str]:
    return sorted(
        str(each) for each in [*place.rglob("*"), *place.parent.glob("torture-canary*")] if each.name != "log.txt"
    )


def attacks() -> Iterator[Attack]:
    """All of them."""
    for name, payload in PAYLOADS.items():
        for container, (make, read) in CONTAINERS.items():
            yield f"{name} in {container}", partial(make, payload), read
    for name, text in YAML.items():
        yield f"yaml, {name}", partial(_write, "config.yaml", text.encode()), load_config
    for name, text in JSON.items():
        for file, read_json in (("results.json", RunResults.read), ("cache/cache.json", _cache)):
            yield f"{file}, {name}", partial(_write, file, text.encode()), read_json
    yield from _bombs()
    yield from _headers()
    for name, add in TAR_MEMBERS.items():
        yield f"tar, {name}", partial(_tar, add), partial(read_archive, CIFAR10, checksum="any")


# ---- code in pickles


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _by_name(module: str, name: str, argument: str) -> bytes:
    """The pickle of a call of any function by its name, which need not be imported here."""
    text = argument.encode()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


TOUCH = 'touch "$TORTURE_CANARY"'
CODE = "import os; open(os.environ['TORTURE_CANARY'], 'w')"
PAYLOADS = {
    "os.system": _by_name("os", "system", TOUCH),
    "posix.system": _by_name("posix", "system", TOUCH),
    "subprocess.getoutput": _by_name("subprocess", "getoutput", TOUCH),
    "os.popen": _by_name("os", "popen", TOUCH),
    "eval": _by_name("builtins", "eval", f"exec({CODE!r})"),
    "exec": _by_name("builtins", "exec", CODE),
    "__builtin__.exec": _by_name("__builtin__", "exec", CODE),
    "timeit": _by_name("timeit", "timeit", CODE),
    "numpy runstring": _by_name("numpy.testing._private.utils", "runstring", CODE),
    "torch.hub": _by_name("torch.hub", "_load_local", CODE),
    "torch jit": _by_name("torch.jit.unsupported_tensor_ops", "execWrapper", CODE),
    "cProfile": _by_name("cProfile", "run", CODE),
    "pdb": _by_name("pdb", "run", CODE),
    "nested in a list": pickle.dumps([1, {"a": _Calls(eval, f"exec({CODE!r})")}], protocol=2),
    "in the place of a tensor": pickle.dumps({"weight": _Calls(exec, CODE)}, protocol=2),
}


def _torch_zip(payload: bytes, place: Path) -> Path:
    path = place / "weights.pt"
    torch.save(network().state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, payload if name.endswith("data.pkl") else content)
    return path


def _torch_legacy(payload: bytes, place: Path) -> Path:
    magic = [pickle.dumps(each, protocol=2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return _write("weights.pth", b"".join(magic) + payload, place)


def _pickle(payload: bytes, place: Path) -> Path:
    return _write("weights.bin", payload, place)


def _checkpoint(payload: bytes, place: Path) -> Path:
    content = _torch_zip(payload, place).read_bytes()
    (place / "run" / "checkpoints").mkdir(parents=True)
    path = place / "run" / "checkpoints" / "step-000000001.pt"
    write_with_checksum(path, lambda temporary: temporary.write_bytes(content))
    return path


def _cifar(payload: bytes, place: Path) -> Path:
    return _tar(lambda tar: [_member(tar, name, payload) for name, _ in CIFAR10.members], place)


def _objects(payload: bytes, place: Path) -> Path:
    buffer, path = io.BytesIO(), place / "p.npz"
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (3,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", buffer.getvalue() + payload)
        archive.writestr("probs.npy", buffer.getvalue() + payload)
    return path


def _load(path: Path) -> Any:
    load_weights(network(), path)


CONTAINERS: dict[str, tuple[Callable[[bytes, Path], Path], Callable[[Path], Any]]] = {
    "a file of weights": (_torch_zip, _load),
    "an old file of weights": (_torch_legacy, _load),
    "a pickle": (_pickle, _load),
    "a checkpoint": (_checkpoint, lambda path: Checkpointer(path.parents[1]).load()),
    "a CIFAR archive": (_cifar, partial(read_archive, CIFAR10, checksum="any")),
    "predictions": (_objects, read_predictions),
}

# ---- text

YAML = {
    "call": f"a: !!python/object/apply:os.system ['{TOUCH}']",
    "call of eval": "a: !!python/object/apply:eval ['1']",
    "new": "a: !!python/object/new:os.system ['x']",
    "name": "a: !!python/name:os.system",
    "module": "a: !!python/module:os",
    "object": "a: !!python/object:tgeokd.Distiller {}",
    "tuple": "a: !!python/tuple [1, 2]",
    "own tag": "a: !own {}",
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "itself": "a: &a [*a]",
    "merged aliases": "a: &a {x: 1}\n" + "".join(f"k{i}: &k{i}\n  <<: [*a, *a]\n" for i in range(5)),
    "nested lists": "[" * 30_000 + "]" * 30_000,
    "nested mappings": "".join(f"{' ' * i}a:\n" for i in range(500)),
    "large": "a: " + "x" * (2 * MIB),
    "many keys": "\n".join(f"k{i}: 1" for i in range(60_000)),
    "huge number": "seed: " + "9" * 5000,
    "list as a key": "? [1, 2]\n: 3",
    "no date": "a: 2024-99-99",
    "binary": "a: !!binary '====='",
    "a list": "[1, 2]",
    "zeros": "\0" * 100,
}
JSON = {
    "nested": "[" * 200_000,
    "nested objects": '{"a":' * 200_000,
    "huge number": "9" * 5000,
    "a list": "[1, 2]",
    "other keys": '{"a": 1}',
    "nothing": "",
    "large": '{"a": "' + "x" * (20 * MIB) + '"}',
}


def _write(name: str, content: bytes, place: Path) -> Path:
    path = place / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def _cache(path: Path) -> Any:
    return TeacherCache(path.parent)


# ---- small files that become large


def _bombs() -> Iterator[Attack]:
    for suffix, opener in {"gzip": gzip.open, "bzip2": bz2.open, "xz": partial(lzma.open, preset=0)}.items():
        yield f"csv, {suffix}", partial(_zeros, "rows.csv.gz", opener), read_table
    yield "CIFAR archive", partial(_zeros, CIFAR10.file, gzip.open), partial(read_archive, CIFAR10, checksum="any")
    yield "predictions, npz", _npz_bomb, read_predictions
    for width, height in ((60_000, 60_000), (2**31 - 1, 2), (10_000, 10_000), (1, 2**30)):
        yield f"png of {width} x {height}", partial(_write, "image.png", _png(width, height)), read_rgb
    yield "csv of one line", partial(_write, "rows.csv", b"x" * (16 * MIB)), read_table
    yield "csv, a quote is never closed", partial(_write, "rows.csv", b'a,b\n1,"' + b"x\n" * (8 * MIB)), read_table
    yield "csv, zeros", partial(_write, "rows.csv", bytes(MIB)), read_table


def _zeros(name: str, opener: Callable[..., Any], place: Path) -> Path:
    with opener(place / name, "wb") as file:
        for _ in range(400):
            file.write(b"0,0\n" * (MIB // 4))
    return place / name


def _npz_bomb(place: Path) -> Path:
    np.savez_compressed(place / "p.npz", ids=np.arange(4), probs=np.zeros((4, 13 * MIB)))
    return place / "p.npz"


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">II", width, height) + bytes([8, 0, 0, 0, 0])
    data = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data


# ---- headers that declare what is not there


def _headers() -> Iterator[Attack]:
    for name, header in {
        "a huge header": struct.pack("<Q", 2**62),
        "no header": b"",
        "beyond the file": _safetensors({"ids": {"dtype": "I64", "shape": [2**40], "data_offsets": [0, 2**43]}}),
        "negative offsets": _safetensors({"ids": {"dtype": "I64", "shape": [1], "data_offsets": [-8, 0]}}),
        "other length": _safetensors({"ids": {"dtype": "I64", "shape": [9], "data_offsets": [0, 8]}}) + bytes(8),
        "unknown type": _safetensors({"ids": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 8]}}) + bytes(8),
    }.items():
        yield f"predictions, safetensors, {name}", partial(_write, "p.safetensors", header), read_predictions
        yield f"weights, safetensors, {name}", partial(_write, "w.safetensors", header), _load
    for shape in ((2**40,), (2**62, 2), (-1,)):
        yield f"predictions, npz of shape {shape}", partial(_npz_header, shape), read_predictions
    for content in (b"PAR1", b"PAR1" + bytes(100) + struct.pack("<I", 2**31 - 1) + b"PAR1", b"PAR1" * 1000):
        yield f"parquet of {len(content)} bytes", partial(_write, "t.parquet", content), read_table
        yield f"predictions, parquet of {len(content)} bytes", partial(_write, "p.parquet", content), read_predictions


def _safetensors(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def _npz_header(shape: tuple[int, ...], place: Path) -> Path:
    path = place / "p.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("ids.npy", "probs.npy"):
            buffer = io.BytesIO()
            np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
            archive.writestr(name, buffer.getvalue())
    return path


# ---- archives that write elsewhere


def _member(tar: tarfile.TarFile, name: str, content: bytes = b"", **more: Any) -> None:
    add_member(tar, name if "/" in name else f"{CIFAR10.folder}/{name}", content, **more)


def _tar(add: Callable[[tarfile.TarFile], Any], place: Path) -> Path:
    with tarfile.open(place / CIFAR10.file, "w:gz") as tar:
        add(tar)
    return place / CIFAR10.file


BATCH = "data_batch_1"
TAR_MEMBERS: dict[str, Callable[[tarfile.TarFile], Any]] = {
    "outside": lambda tar: _member(tar, "../torture-canary", b"x"),
    "absolute": lambda tar: _member(tar, "/tmp/torture-canary", b"x"),
    "a symbolic link": lambda tar: _member(tar, BATCH, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": lambda tar: _member(tar, BATCH, type=tarfile.LNKTYPE, linkname="../../torture-canary"),
    "a device": lambda tar: _member(tar, BATCH, type=tarfile.CHRTYPE),
    "a pipe": lambda tar: _member(tar, BATCH, type=tarfile.FIFOTYPE),
    "a folder": lambda tar: _member(tar, BATCH, type=tarfile.DIRTYPE),
    "nothing": lambda tar: None,
    "many empty files": lambda tar: [_member(tar, f"x/{i}") for i in range(20_000)],
}
