"""Checks of an error that a user can correct: its type, its length of one line, and the values that it mentions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tgeokd.utils.errors import InputError


@contextmanager
def refused(*mentioned: object) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """Expect an InputError of one line that mentions some values: those given, or names of options, files and columns."""
    with pytest.raises(InputError) as caught:
        yield caught
    message = str(caught.value)
    assert "\n" not in message
    assert [value for value in mentioned if str(value) not in message] == [], message
