"""Shipping goes wrong in two ways.

    InputError (ValueError)      an address, a port or a setting that cannot be used: exit code 2, nothing was changed
    Failure    (RuntimeError)    registering, packaging or promoting failed on good input: exit code 1
      Spoiled                    ... and would fail for ever: what was made is not what it was, or has had its day

Each message names the value, where it came from and what to do.
"""


class InputError(ValueError):
    """What was given cannot be used."""


class Failure(RuntimeError):
    """The work failed although its input was good."""


class Spoiled(Failure):
    """The work failed, and will each time that it is done on what has been made: that must be made anew."""
