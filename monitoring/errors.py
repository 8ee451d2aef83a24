"""Watching goes wrong in two ways.

    InputError (ValueError)      traffic, a window or a setting that cannot be used: exit code 2, nothing was changed
    Failure    (RuntimeError)    reading, writing or judging failed on good input: exit code 1

Each message names the value, where it came from and what to do.
"""

import re


def masked(text: str) -> str:
    """Return a text without the credentials of any URL in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


class InputError(ValueError):
    """What was given cannot be used."""


class Failure(RuntimeError):
    """The work failed although its input was good."""
