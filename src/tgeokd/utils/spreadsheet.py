"""Text in csv files that people open in a spreadsheet."""

import math

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
)  # what a cell begins with that a spreadsheet executes (OWASP, CSV injection)


def safe_cell(text: str) -> str:
    """The text with an apostrophe before it where a spreadsheet would execute it; a number stays as it is."""
    if not text.startswith(FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
