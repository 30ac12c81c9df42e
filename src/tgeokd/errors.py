"""The one exception for what a user can mend, and how another library's error is put into its one line."""

__all__ = ["InputError", "first_line", "one_line"]


class InputError(ValueError):
    """Something given by the user is wrong. The message names what was given and what was expected, in one line."""


def one_line(error: BaseException) -> str:
    """The whole text of an error in one line; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
