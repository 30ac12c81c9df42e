from __future__ import annotations

import itertools

import numpy as np
import pytest
from criteo_rows import COLUMNS

from tgeokd.data.tasks.criteo import generator
from tgeokd.data.tasks.criteo.generator import MISSING, PAIRED, SIZES, ClickModel, generate, probability_file

ROWS = 70_000  # more than a chunk


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Fields of a generated file and the probabilities beside it."""
    path = tmp_path_factory.mktemp("made") / "made.txt"
    generate(path, ROWS)
    return path, [line.split("\t") for line in path.read_text().splitlines()], np.load(probability_file(path))


def test_the_format_is_that_of_the_challenge(made):
    _, rows, probability = made
    assert len(rows) == len(probability) == ROWS
    assert {len(row) for row in rows} == {40}
    for row in rows[:2000]:
        assert row[0] in ("0", "1")
        assert all(v == "" or int(v) >= (-3 if i == 1 else 0) for i, v in enumerate(row[1:14]))
        assert all(v == "" or (len(v) == 8 and f"{int(v, 16):08x}" == v) for v in row[14:])
    assert not list(made[0].parent.glob(".*"))


@pytest.mark.slow
def test_a_seed_makes_one_file_and_a_longer_one_starts_with_a_shorter(made, tmp_path):
    path, _, probability = made
    for rows in (1000, ROWS):
        generate(tmp_path / "again.txt", rows)
        text = (tmp_path / "again.txt").read_bytes()
        assert path.read_bytes().startswith(text)
        assert np.array_equal(np.load(probability_file(tmp_path / "again.txt")), probability[:rows])
    generate(tmp_path / "other.txt", 1000, seed=1)
    assert not path.read_bytes().startswith((tmp_path / "other.txt").read_bytes())


def test_labels_are_drawn_with_the_probabilities_beside_them(made):
    _, rows, p = made
    label = np.array([row[0] == "1" for row in rows])
    assert 0.23 < label.mean() < 0.27
    for part in np.array_split(np.argsort(p), 10):
        assert abs(label[part].mean() - p[part].mean()) < 4 * np.sqrt((p * (1 - p))[part].mean() / len(part))


def test_missing_values_have_their_shares_and_come_together(made):
    _, rows, _ = made
    blank = {name: np.array([row[1 + i] == "" for row in rows]) for i, name in enumerate(COLUMNS)}
    listed = {name: share for share, names in MISSING for name in names}
    for name in COLUMNS:
        share = listed.get(name, 0.0)
        assert abs(blank[name].mean() - share) <= 5 * np.sqrt(share * (1 - share) / ROWS)
    assert all(np.array_equal(blank[a], blank[b]) for _, names in MISSING for a, b in itertools.pairwise(names))


def test_frequencies_follow_a_power_law_up_to_many_values(made):
    _, rows, _ = made
    for column in (0, 6, 9):  # C1, C7, C10: 1,460 to 93,145 values
        _, counts = np.unique([row[14 + column] for row in rows], return_counts=True)
        counts = np.sort(counts)[::-1]
        ranks = np.arange(3, 100)
        slope = np.polyfit(np.log(ranks + 0.5), np.log(counts[ranks - 1]), 1)[0]
        assert abs(slope + generator.EXPONENT) < 0.1
    assert len({row[16] for row in rows}) > 5_000  # C3


@pytest.mark.slow
def test_probabilities_are_those_of_the_documented_model(made):
    _, rows, probability = made
    model = ClickModel(0)
    rank_of = [
        {f"{token:08x}": rank for rank, token in enumerate(generator._token(i, np.arange(size)))}
        for i, size in enumerate(SIZES)
    ]
    assert [len(ranks) for ranks in rank_of] == list(SIZES)  # no two values share a name
    parts = {"first": [], "pairs": [], "numbers": []}
    for row in rows[:300]:
        ranks = {f"C{i + 1}": rank_of[i][v] for i, v in enumerate(row[14:]) if v}
        parts["first"].append(sum(model._effects[int(name[1:]) - 1][rank] for name, rank in ranks.items()))
        vectors = [model._vectors[name][ranks[name]] for name in PAIRED if name in ranks]
        parts["pairs"].append(sum(float(a @ b) for a, b in itertools.combinations(vectors, 2)))
        numbers = 0.0
        for i, text in enumerate(row[1:14]):
            if text:
                x = (np.log(int(text) + 4) - max(generator.INTEGER_LOG_MEAN[i], 1.5)) / generator.INTEGER_LOG_SD[i]
                line, parabola = model._curves[i]
                numbers += line * x + parabola * (min(x * x, 9) - 1)
        parts["numbers"].append(numbers)
    # the logit must be an exact linear function of the three parts: constant b, one scale a part
    design = np.column_stack([np.ones(300), *parts.values()])
    logit = np.log(probability[:300] / (1 - probability[:300]))
    solution, *_ = np.linalg.lstsq(design, logit)
    assert np.abs(design @ solution - logit).max() < 1e-9
    assert solution[0] == pytest.approx(model.bias)
    deviations = [np.std(scale * np.array(part)) for scale, part in zip(solution[1:], parts.values(), strict=True)]
    assert deviations == pytest.approx(list(generator.DEVIATIONS.values()), rel=0.25)  # on these few rows
