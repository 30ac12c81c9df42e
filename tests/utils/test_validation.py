from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.utils.deprecation import renamed_arguments
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import Config, StrictInt, call_validated, validate_config, validate_value


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    bound: float | None = None
    kind: Literal["a", "b"] = "a"
    options: dict[str, Any] = field(default_factory=dict)
    fast: bool = False
    count: int = 1


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("x", str, "x"),
        (3, int, 3),
        (True, bool, True),
        (0.5, float, 0.5),
        (3, float, 3.0),
        ("1e-3", float, 0.001),
        (".5", float, 0.5),
        (None, float | None, None),
        (2, float | None, 2.0),
        ("1e-3", float | None, 0.001),
        (None, int | None, None),
        (3, int | str, 3),
        ("x", int | str, "x"),
        ("b", Literal["a", "b"], "b"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1, 2), tuple[int, ...], (1, 2)),
        ([], tuple[int, ...], ()),
        ([1, "2e0"], tuple[float, ...], (1.0, 2.0)),
        ({"a": [1]}, dict[str, Any], {"a": [1]}),
        ([1], list[int], [1]),
        (object, Any, object),
        (None, Any, None),
        ({"lr": 1}, Inner, Inner(lr=1.0)),
        (Inner(2.0), Inner, Inner(2.0)),
    ],
)
def test_values_of_each_type_pass(value, annotation, expected):
    result = validate_value(annotation, value, "x")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, str, "str"),
        (None, str, "str"),
        ("3", int, "int"),
        (2.5, int, "int"),
        (2.0, int, "int"),
        (True, int, "int"),
        (False, float, "float"),
        (True, int | None, "int"),
        (1, bool, "bool"),
        ("true", bool, "bool"),
        ("fast", float, "float"),
        ("fast", float | None, "float"),
        (None, float, "float"),
        (2.5, int | str, "int | str"),
        ("c", Literal["a", "b"], "a, b"),
        (None, Literal["a", "b"], "a, b"),
        (["a"], Literal["a", "b"], "a, b"),
        (3, tuple[int, ...], "tuple"),
        ("12", tuple[int, ...], "tuple"),
        ([1], dict[str, Any], "dict"),
        (3, Inner, "mapping"),
        (None, Inner, "mapping"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_value_and_the_type(value, annotation, expected):
    with pytest.raises(InputError, match=rf"^speed .*\b{re.escape(expected)}\b.*{re.escape(repr(value))}$"):
        validate_value(annotation, value, "speed")


@pytest.mark.parametrize(
    ("value", "annotation", "place"),
    [
        ([1, "b"], tuple[int, ...], "milestones[1]"),
        ([1], tuple[int, int], "milestones"),
        ([1, 2, 3], tuple[int, int], "milestones"),
        ([{"lr": 1}, {"steps": [0.5]}], list[Inner], "milestones[1].steps[0]"),
    ],
)
def test_the_place_in_a_container_is_named(value, annotation, place):
    with pytest.raises(InputError, match=f"^{re.escape(place)} "):
        validate_value(annotation, value, "milestones")


@given(st.floats(allow_nan=False))
def test_text_of_a_float_is_that_float(number):
    assert validate_value(float, repr(number), "x") == number


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_whole_numbers_become_floats_without_loss(number):
    result = validate_value(float, number, "x")
    assert isinstance(result, float)
    assert result == number


NESTED = {
    "name": "x",
    "inner": {"lr": "2e-1", "steps": [3, 5]},
    "bound": 1,
    "kind": "b",
    "options": {"any": [None]},
    "fast": True,
    "count": 7,
}


def test_a_dataclass_from_a_nested_mapping():
    assert validate_value(Outer, NESTED, "outer") == Outer("x", Inner(0.2, (3, 5)), 1.0, "b", {"any": [None]}, True, 7)


class Settings(Config):
    name: str
    inner: Inner = Inner()
    count: StrictInt = 1
    nested: Settings | None = None


@pytest.mark.parametrize("make", [lambda c: validate_config(Settings, c), lambda c: validate_value(Outer, c, "it")])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"count": 1}, "name"),
        ({"name": "x", "cuont": 1}, "count"),
        ({"name": "x", "zzzzzz": 1}, "zzzzzz"),
        ({"name": "x", 3: 1}, "3"),
        ({"name": "x", "count": True}, "True"),
        ({"name": "x", "inner": None}, "None"),
    ],
)
def test_a_wrong_mapping_is_refused_by_key_or_value(make, content, named):
    with pytest.raises(InputError, match=re.escape(named)) as caught:
        make(content)
    assert "\n" not in str(caught.value)


def test_the_whole_path_of_a_wrong_setting_is_named():
    for content, path in (
        ({"name": "x", "nested": {"name": "y", "count": 0.5}}, r"^nested\.count "),
        ({"name": "x", "nested": {"name": "y", "cuont": 1}}, r"nested\.cuont.*nested\.count"),
        ({"name": "x", "nested": {}}, "^nested .*'name'"),
    ):
        with pytest.raises(InputError, match=path):
            validate_config(Settings, content)
    with pytest.raises(InputError, match=r"\[1\]"):
        validate_config(Settings, [1])


@dataclass
class Positive:
    n: int

    def __post_init__(self):
        if self.n < 1:
            raise InputError("n must be >= 1")


def test_a_dataclass_s_own_refusal_comes_through():
    with pytest.raises(InputError, match="n must be >= 1"):
        validate_value(Positive, {"n": 0}, "it")


def build(size: int, *, rate: float = 0.5, kind: Literal["a", "b"] = "a", free=None, seed: int):
    return size, rate, kind, free, seed


class Thing:
    def __init__(self, *, width: tuple[int, ...] = (1,), deep: bool = False) -> None:
        self.made = (width, deep)


class Bare:
    pass


def test_a_function_is_called_with_checked_options():
    assert call_validated("task", build, {"size": 3, "rate": 1, "free": "anything"}, seed=5) == (
        3,
        1.0,
        "a",
        "anything",
        5,
    )


def test_a_constructor_is_called_with_checked_options():
    assert call_validated("thing", Thing, {"width": [2, 3], "deep": True}).made == ((2, 3), True)
    assert call_validated("thing", Thing, {}).made == ((1,), False)
    assert isinstance(call_validated("bare", Bare, {}), Bare)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (build, {"size": "3"}, "size of it.*int.*'3'"),
        (build, {"siez": 3}, "'siez'.*'size'"),
        (build, {"seed": 3}, "'seed'"),
        (build, {"kind": "c"}, "kind of it.*a, b.*'c'"),
        (Thing, {"self": 3}, "'self'"),
        (Thing, {"width": 3}, "width of it.*tuple"),
        (Thing, {"deep": 0}, "deep of it.*bool.*0"),
        (Bare, {"width": 3}, "'width'"),
    ],
)
def test_wrong_options_of_a_call_are_refused_by_name(function, options, message):
    with pytest.raises(InputError, match=message):
        call_validated("it", function, options, **({"seed": 0} if function is build else {}))


class Renamed:
    @renamed_arguments(every="interval")
    def __init__(self, *, interval: int = 1) -> None:
        self.interval = interval


def test_an_earlier_name_of_an_option_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match="interval"):
        assert call_validated("it", Renamed, {"every": 3}).interval == 3
    with pytest.raises(InputError, match=r"every of it.*'3'"):
        call_validated("it", Renamed, {"every": "3"})
    with pytest.raises(InputError, match="interval"):
        call_validated("it", Renamed, {"every": 3, "interval": 3})


def test_arguments_that_are_given_already_are_no_options():
    small = partial(build, 3)
    assert call_validated("it", small, {"rate": 1}, seed=5) == (3, 1.0, "a", None, 5)
