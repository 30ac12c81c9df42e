from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tgeokd.utils.typed import call_checked, checked, from_mapping

from tgeokd.utils.errors import InputError


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
    result = checked("x", value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, str, "type str, not 3"),
        (None, str, "type str, not None"),
        ("3", int, "type int, not '3'"),
        (2.5, int, "type int, not 2.5"),
        (2.0, int, "type int, not 2.0"),
        (True, int, "type int, not True"),
        (False, float, "type float, not False"),
        (True, int | None, "type int, not True"),
        (1, bool, "type bool, not 1"),
        ("true", bool, "type bool, not 'true'"),
        ("fast", float, "type float, not 'fast'"),
        ("fast", float | None, "type float, not 'fast'"),
        (None, float, "type float, not None"),
        ("c", Literal["a", "b"], "one of a, b, not 'c'"),
        (None, Literal["a", "b"], "one of a, b, not None"),
        (["a"], Literal["a", "b"], r"one of a, b, not \['a'\]"),
        (3, tuple[int, ...], r"type tuple\[int, \.\.\.\], not 3"),
        ("12", tuple[int, ...], r"type tuple\[int, \.\.\.\], not '12'"),
        ([1], dict[str, Any], r"type dict\[str, typing.Any\], not \[1\]"),
        (3, Inner, "type Inner, not 3"),
        (None, Inner, "type Inner, not None"),
    ],
)
def test_values_of_another_type_are_refused_by_name(value, annotation, expected):
    with pytest.raises(InputError, match=f"^speed must be (of )?{expected}$"):
        checked("speed", value, annotation)


def test_the_place_in_a_tuple_is_named():
    with pytest.raises(InputError, match=r"^milestones\[1\] must be of type int, not 'b'$"):
        checked("milestones", [1, "b"], tuple[int, ...])


@given(st.floats(allow_nan=False))
def test_text_of_a_float_is_that_float(number):
    assert checked("x", repr(number), float) == number


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_whole_numbers_become_floats_without_loss(number):
    result = checked("x", number, float)
    assert isinstance(result, float)
    assert result == number


def test_a_dataclass_from_a_nested_mapping():
    made = from_mapping(
        Outer,
        {
            "name": "x",
            "inner": {"lr": "2e-1", "steps": [3, 5]},
            "bound": 1,
            "kind": "b",
            "options": {"any": [None]},
            "fast": True,
            "count": 7,
        },
    )
    assert made == Outer("x", Inner(0.2, (3, 5)), 1.0, "b", {"any": [None]}, True, 7)


def test_missing_keys_take_their_defaults_and_required_ones_are_asked_for():
    assert from_mapping(Outer, {"name": "x"}) == Outer("x")
    with pytest.raises(InputError, match=r"^setting lacks 'name'$"):
        from_mapping(Outer, {"count": 1})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "x", "cuont": 1}, r"unknown setting 'cuont'; did you mean 'count'\? known: name, inner, .*count"),
        ({"name": "x", "inner": {"Lr": 1}}, r"unknown key in inner 'Lr'; did you mean 'lr'\? known: lr, steps"),
        ({"name": "x", "zzzzzz": 1}, r"unknown setting 'zzzzzz'; known: name"),
        ({"name": "x", 3: 1}, r"unknown setting '3'; known: name"),
        ({"name": "x", "inner": {"lr": "fast"}}, r"^inner\.lr must be of type float, not 'fast'$"),
        ({"name": "x", "inner": {"steps": [1.5]}}, r"^inner\.steps\[0\] must be of type int, not 1\.5$"),
        ({"name": "x", "inner": None}, r"^inner must be of type Inner, not None$"),
        ({"name": "x", "fast": 1}, r"^fast must be of type bool, not 1$"),
    ],
)
def test_a_wrong_mapping_is_refused_by_key(mapping, message):
    with pytest.raises(InputError, match=message):
        from_mapping(Outer, mapping)


def test_a_dataclass_s_own_refusal_comes_through():
    @dataclass
    class Positive:
        n: int

        def __post_init__(self):
            if self.n < 1:
                raise InputError("n must be >= 1")

    # annotations of a local class are text that get_type_hints resolves against the module's names
    with pytest.raises(InputError, match="n must be >= 1"):
        from_mapping(Positive, {"n": 0})


def build(size: int, *, rate: float = 0.5, kind: Literal["a", "b"] = "a", free=None, seed: int):
    return size, rate, kind, free, seed


class Thing:
    def __init__(self, *, width: tuple[int, ...] = (1,), deep: bool = False) -> None:
        self.made = (width, deep)


class Bare:
    pass


def test_a_function_is_called_with_checked_options():
    assert call_checked("task", build, {"size": 3, "rate": 1, "free": "anything"}, seed=5) == (
        3,
        1.0,
        "a",
        "anything",
        5,
    )


def test_a_constructor_is_called_with_checked_options():
    assert call_checked("thing", Thing, {"width": [2, 3], "deep": True}).made == ((2, 3), True)
    assert call_checked("thing", Thing, {}).made == ((1,), False)
    assert isinstance(call_checked("bare", Bare, {}), Bare)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (build, {"size": "3"}, r"^size of it must be of type int, not '3'$"),
        (build, {"siez": 3}, r"^unknown option of it 'siez'; did you mean 'size'\? known: size, rate, kind, free$"),
        (build, {"seed": 3}, r"^unknown option of it 'seed';"),
        (build, {"kind": "c"}, r"^kind of it must be one of a, b, not 'c'$"),
        (Thing, {"self": 3}, r"^unknown option of it 'self';"),
        (Thing, {"width": 3}, r"^width of it must be of type tuple"),
        (Thing, {"deep": 0}, r"^deep of it must be of type bool, not 0$"),
        (Bare, {"width": 3}, r"^unknown option of it 'width'; known: none$"),
    ],
)
def test_wrong_options_of_a_call_are_refused_by_name(function, options, message):
    with pytest.raises(InputError, match=message):
        call_checked("it", function, options, **({"seed": 0} if function is build else {}))
