"""Cells that a spreadsheet would execute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgeokd.utils.spreadsheet import safe_cell


@pytest.mark.parametrize(
    "text", ['=cmd|" /C calc"!A0', "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-nan", "+inf"]
)
def test_what_would_be_executed_gets_an_apostrophe(text):
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "cat", "-1", "+2.5e3", "a=b", "1-2", "'=1", " =1"])
def test_the_rest_stays(text):
    assert safe_cell(text) == text


@given(st.text())
def test_the_text_itself_is_kept(text):
    assert safe_cell(text) in (text, f"'{text}")
