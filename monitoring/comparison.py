"""What a test of two models on the same rows says, whichever test it was."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """How much the challenger gains (loses, below 0), with one-sided bounds at alpha each.

    `p_value` is that of "it gains `bar` or less", `p_worse` that of "it loses nothing". `error` is the gain's standard
    error, `slack` what is taken off the lower bound besides; both shrink with the root of the rows.
    """

    gain: float
    lower: float
    upper: float
    p_value: float
    p_worse: float
    error: float
    slack: float = 0.0
