"""Click logs written without the package, and their encoding worked out in plain Python."""

from __future__ import annotations

import gzip
import math
import random
from collections import Counter
from pathlib import Path

COLUMNS = [*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]


def make_rows(n: int, seed: int = 0) -> list[list[str]]:
    """Rows of 40 fields: label, integers, categories; empty where missing."""
    draw = random.Random(seed)

    def integer(i: int) -> str:
        return "" if draw.random() < 0.2 else str(int(draw.lognormvariate(1 + i / 3, 1.5)) - (3 if i == 1 else 0))

    def category(i: int) -> str:
        value = min(int(draw.paretovariate(0.8)), 50 * (i + 1))
        return "" if draw.random() < 0.1 else f"{(value * 2654435761 + i * 40503) % 2**32:08x}"

    return [
        [str(int(draw.random() < 0.3)), *(integer(i) for i in range(13)), *(category(i) for i in range(26))]
        for _ in range(n)
    ]


def write(path: Path, rows: list[list[str]], form: str = "tab") -> Path:
    """Write rows as ``tab``, ``tab.gz`` or ``csv`` (with a header and an id, as Criteo_x4 has them)."""
    if form == "csv":
        lines = [",".join(["Id", "Label", *COLUMNS])]
        lines += [",".join([str(10_000_000 + i), *row]) for i, row in enumerate(rows)]
    else:
        lines = ["\t".join(row) for row in rows]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if form == "tab.gz" else content)
    return path


def category_of(column: int, text: str) -> str | None:
    """The category of a field, None where it is missing; integers by the rule of the challenge's winners."""
    if text == "":
        return None
    if column < 13:
        value = int(text)
        return f"b{math.floor(math.log(value) ** 2)}" if value > 2 else str(value)
    return text


def encode(rows: list[list[str]], fit_on: list[int], min_count: int) -> tuple[list[list[int]], list[list[str]]]:
    """Codes of all rows, and the values with a code of their own, fitted on some of the rows."""
    codes = [[0] * 39 for _ in rows]
    vocabulary = []
    for column in range(39):
        values = [category_of(column, row[1 + column]) for row in rows]
        counts = Counter(values[i] for i in fit_on if values[i] is not None)
        known = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v))
        code = {value: 2 + i for i, value in enumerate(known)}
        for row, value in zip(codes, values, strict=True):
            row[column] = 0 if value is None else code.get(value, 1)
        vocabulary.append(known)
    return codes, vocabulary
