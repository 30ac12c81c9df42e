"""Looking up by name."""

from __future__ import annotations

import pytest

from tgeokd.errors import InputError
from tgeokd.names import check_names, look_up, unknown_name


def test_look_up_gives_the_entry():
    assert look_up("task", "b", {"a": 1, "b": 2}) == 2


def test_a_near_name_is_suggested():
    with pytest.raises(InputError) as caught:
        look_up("task", "cifar10", {"digits": 0, "cifar100": 1})
    assert str(caught.value) == "unknown task 'cifar10'; did you mean 'cifar100'? known: digits, cifar100"


def test_a_far_name_gets_the_list():
    assert unknown_name("task", "zzz", ["digits", "adult"]) == "unknown task 'zzz'; known: digits, adult"


def test_an_empty_registry_says_none():
    assert unknown_name("option", "x", []) == "unknown option 'x'; known: none"


def test_check_names_passes_known_ones_and_names_the_first_unknown():
    check_names("option", [], ["a"])
    check_names("option", ["a", "b"], iter(["a", "b", "c"]))
    with pytest.raises(InputError, match="unknown option 'alpa'; did you mean 'alpha'"):
        check_names("option", ["beta", "alpa", "zzz"], iter(["alpha", "beta"]))


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
