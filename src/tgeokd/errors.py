"""The one exception for what a user can mend."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Something given by the user is wrong. The message names what was given and what was expected, in one line."""
