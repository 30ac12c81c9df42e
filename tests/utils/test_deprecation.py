"""Earlier names of arguments."""

from __future__ import annotations

import inspect
import warnings

import pytest

from tgeokd.utils.deprecation import renamed_arguments, renames_of


@renamed_arguments(every="interval", mean="average")
def scaled(value, *, interval=1, average=0.0):
    """Documented."""
    return value, interval, average


class Thing:
    @renamed_arguments(length="size")
    def __init__(self, size=1):
        self.size = size


class Subclass(Thing):
    pass


def test_an_earlier_name_is_accepted_with_a_warning_that_names_both():
    with pytest.warns(DeprecationWarning, match=r"'every'.*'interval'") as caught:
        assert scaled(1, every=5, average=0.5) == (1, 5, 0.5)
    assert caught[0].filename == __file__  # it points at the caller
    with pytest.warns(DeprecationWarning, match=r"'length'.*'size'"):
        assert Thing(length=3).size == 3


def test_the_present_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scaled(1, interval=5, average=0.5) == (1, 5, 0.5)
        assert Thing(2).size == 2


def test_an_argument_given_under_both_names_is_refused():
    with pytest.raises(TypeError, match=r"'interval'.*'every'"):
        scaled(1, every=5, interval=5)


def test_an_argument_that_never_existed_is_refused_as_usual():
    with pytest.raises(TypeError, match="never"):
        scaled(1, never=5)


def test_name_documentation_and_signature_stay():
    assert scaled.__name__ == "scaled"
    assert scaled.__doc__ == "Documented."
    assert list(inspect.signature(scaled).parameters) == ["value", "interval", "average"]


def test_the_renames_of_a_function_or_a_class_can_be_listed():
    assert renames_of(scaled) == {"every": "interval", "mean": "average"}
    assert renames_of(Thing) == renames_of(Subclass) == {"length": "size"}
    assert renames_of(int) == renames_of(len) == {}
