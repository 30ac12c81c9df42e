"""Whether a result was computed before: by everything it depends on."""

from __future__ import annotations

import pytest
from quick import short

from tgeokd.runs.stored import computed, result_key, stored
from tgeokd.utils.errors import InputError


def test_the_key_depends_on_settings_teacher_and_sort_and_not_on_places(tmp_path):
    teachers = [tmp_path / name for name in ("a", "b", "c")]
    for path, content in zip(teachers, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    keys = [
        result_key("run", short(), teachers[0]),
        result_key("run", short()),
        result_key("trial", short(), teachers[0]),
        result_key("run", short(), teachers[2]),
        result_key("run", short("seed=1"), teachers[0]),
        result_key("run", short("options.outer=holdout"), teachers[0]),
        result_key("run", short("teacher_cache={}"), teachers[0]),
    ]
    assert len(set(keys)) == len(keys)
    assert result_key("run", short("data_dir=/elsewhere"), teachers[1]) == keys[0]
    assert result_key("run", short("teacher_cache.folder=/elsewhere"), teachers[0]) == keys[-1]


def test_a_result_is_computed_once_per_key(tmp_path):
    path, calls = tmp_path / "deep" / "result.json", []

    def compute():
        calls.append(1)
        return {"value": [1.5, None]}

    assert stored(path, "a") is None
    assert computed(path, "a", compute) == computed(path, "a", compute) == {"value": [1.5, None]}
    assert len(calls) == 1
    for other in (lambda: computed(path, "b", compute), lambda: stored(path, "b")):
        with pytest.raises(InputError, match=r"result\.json"):
            other()
    assert len(calls) == 1
