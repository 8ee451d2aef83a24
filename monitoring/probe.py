"""Would a retrain pay? Champion and teacher answer a sample of the drifted slice before the whole is paid for.

    found = probe(agreement, profile.agreement, ProbeSettings(), slice_share=0.4)

What agreement has lost since the promotion is what a retrain can win back. It is held only when that loss is surely
below `probe.margin`: the upper end of its 90 % interval, so that a loss of the margin itself is held in at most 5 % of
the probes. Agreement is the exact match of both answers without surrounding blanks.
"""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from monitoring.performance import Interval, wilson
from monitoring.settings import ProbeSettings

LEVEL = 0.9  # of the intervals: 5 % on each side


class Agreement(BaseModel):
    """On how many of the rows that both answered champion and teacher gave the same answer."""

    model_config = ConfigDict(frozen=True)

    agreed: NonNegativeInt
    rows: PositiveInt

    @model_validator(mode="after")
    def _is_a_share(self) -> "Agreement":
        if self.agreed > self.rows:
            raise ValueError(f"agreed {self.agreed} is above rows {self.rows}")
        return self

    @property
    def interval(self) -> Interval:
        """The share with Wilson's 90 % interval."""
        return wilson(self.agreed, self.rows, LEVEL)


class Probe(BaseModel):
    """What a sample of the drifted slice says about a retrain."""

    model_config = ConfigDict(frozen=True)

    agreement: Agreement
    before: Agreement | None  # at the promotion; None: the profile does not know, and full agreement stands for it
    loss: Interval  # of agreement on the slice, 90 %
    slice_share: float  # of the window's held-out rows
    expected_gain: Interval  # of exact match on the whole window, should a retrain win the loss back
    pays: bool
    reason: str


def probe(
    agreement: Agreement, before: Agreement | None, settings: ProbeSettings, slice_share: float, *, force: bool = False
) -> Probe:
    """Return whether a retrain would pay; forced, it is said to pay whatever the sample shows."""
    loss = lost(before, agreement)
    small = loss.high < settings.margin
    compared = f"at the promotion {before.interval.value:.3f}" if before else "full agreement stands for the unknown"
    seen = (
        f"champion and teacher agree on {agreement.agreed} of {agreement.rows} rows of the drifted slice "
        f"({agreement.interval.value:.3f}; {compared}): a loss of {loss.value:.3f} (90 % interval {loss.low:.3f} to "
        f"{loss.high:.3f})"
    )
    verdict = "surely below" if small else "not surely below"
    return Probe(
        agreement=agreement,
        before=before,
        loss=loss,
        slice_share=slice_share,
        expected_gain=Interval(**{name: max(0.0, value) * slice_share for name, value in loss.model_dump().items()}),
        pays=force or not small,
        reason=f"{seen}, {verdict} probe.margin {settings.margin:g}{' (forced)' if force else ''}",
    )


def told(numbers: Mapping[str, float | None]) -> str:
    """Return a retrain's gain, tokens and seconds, expected or come true, in words; what is not known is left out."""
    gain, seconds = numbers["gain"], numbers["seconds"]
    parts = [
        "" if gain is None else f"{100 * gain:+.1f} points of exact match",
        f"{numbers['tokens']:,.0f} teacher tokens",
        "" if seconds is None else f"{seconds:.0f} s of training",
    ]
    return ", ".join(filter(None, parts))


def lost(before: Agreement | None, now: Agreement) -> Interval:
    """Return by how much agreement fell, with a 90 % interval; without `before`, from full agreement.

    The interval of a difference of shares is put together from both score intervals (Newcombe 1998, method 10).
    """
    then, current = (before.interval if before else Interval(value=1.0, low=1.0, high=1.0)), now.interval
    value = then.value - current.value
    return Interval(
        value=value,
        low=value - math.hypot(then.value - then.low, current.high - current.value),
        high=value + math.hypot(then.high - then.value, current.value - current.low),
    )
