"""Would a retrain pay? Champion and teacher answer samples of the window before the whole is paid for.

    found = probe(Sampled(drifted, rest, share=0.4), profile.agreement, ProbeSettings())

What agreement has lost since the promotion is what a retrain can win back. One sample is of the drifted slice and one
of the other rows, for a drift is seldom confined to where it shows. The retrain is held only when the loss on the slice
and that on the whole window are both surely below `probe.margin`, the upper ends of their 90 % intervals: a loss of the
margin itself is held in about 5 % of the probes at most. Where nothing was lost, 64 and 64 rows hold 32 % of the probes
at an agreement of 0.6, 56 % at 0.9 and 94 % at 0.98 (benchmarks.probe); more rows hold more.

Agreement is the exact match of both answers without surrounding blanks; where the two agree too seldom for a loss to
show, nothing is held. A slice that is harder by nature looks like a loss, which errs towards retraining; the window's
loss does not. The gain that is expected is one of agreement; what comes true is measured on labels where there are any.
"""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

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

    def __str__(self) -> str:
        return f"{self.agreed} of {self.rows} ({self.agreed / self.rows:.3f})"


class Sampled(BaseModel):
    """Agreement now: on the drifted slice, and on the other rows; without `rest` the slice is the whole window."""

    model_config = ConfigDict(frozen=True)

    drifted: Agreement
    rest: Agreement | None = None
    share: float = Field(1.0, gt=0, le=1)  # of the slice among the window's held-out rows

    @property
    def window(self) -> Interval:
        """Agreement on the whole window with a 90 % interval, of both samples by their shares (MOVER)."""
        parts = [(self.share, self.drifted.interval)]
        if self.rest is not None:
            parts.append((1 - self.share, self.rest.interval))
        value = sum(share * seen.value for share, seen in parts)
        return Interval(
            value=value,
            low=value - math.hypot(*(share * (seen.value - seen.low) for share, seen in parts)),
            high=value + math.hypot(*(share * (seen.high - seen.value) for share, seen in parts)),
        )


class Probe(BaseModel):
    """What the samples say about a retrain."""

    model_config = ConfigDict(frozen=True)

    now: Sampled
    before: Agreement | None  # at the promotion; None: the profile does not know, and full agreement stands for it
    slice_loss: Interval  # of agreement, 90 %
    window_loss: Interval
    expected_gain: Interval | None  # of exact match on the window, should a retrain win its loss back; None: unknown
    pays: bool
    reason: str


def probe(now: Sampled, before: Agreement | None, settings: ProbeSettings, *, force: bool = False) -> Probe:
    """Return whether a retrain would pay; forced, it is said to pay whatever the samples show."""
    then = before.interval if before else Interval(value=1.0, low=1.0, high=1.0)
    slice_loss, window_loss = lost(then, now.drifted.interval), lost(then, now.window)
    # So little agrees that all of it could go unnoticed, as in long free answers.
    blind = max(then.high, now.window.high) < settings.margin
    small = max(slice_loss.high, window_loss.high) < settings.margin and not blind
    if now.rest is None:
        seen = f"on {now.drifted} rows of the window"
    else:
        seen = f"on {now.drifted} rows of the drifted slice and {now.rest} others"
    compared = f"{before} at the promotion" if before else "full agreement stands for the unknown one at the promotion"
    losses = [("on the slice", slice_loss), ("on the window", window_loss)][0 if now.rest else 1 :]
    told = " and ".join(f"{loss.value:.3f} {where} ({loss.low:.3f} to {loss.high:.3f})" for where, loss in losses)
    return Probe(
        now=now,
        before=before,
        slice_loss=slice_loss,
        window_loss=window_loss,
        expected_gain=_gain(window_loss) if before else None,
        pays=force or not small,
        reason=f"champion and teacher agree {seen}, {compared}: a loss of {told}, 90 % intervals, "
        f"{'surely' if small else 'not surely'} below probe.margin {settings.margin:g}"
        f"{', which was never above it: exact match says nothing here' if blind else ''}{' (forced)' if force else ''}",
    )


def _gain(loss: Interval) -> Interval:
    return Interval(**{name: max(0.0, value) for name, value in loss.model_dump().items()})


def told(numbers: Mapping[str, float | None]) -> str:
    """Return a retrain's gain, tokens and seconds, expected or come true, in words; what is not known is left out."""
    gain, seconds = numbers["gain"], numbers["seconds"]
    parts = [
        "" if gain is None else f"{100 * gain:+.1f} points of exact match",
        f"{numbers['tokens']:,.0f} teacher tokens",
        "" if seconds is None else f"{seconds:.0f} s of training",
    ]
    return ", ".join(filter(None, parts))


def lost(before: Interval, now: Interval) -> Interval:
    """Return by how much a share fell, with an interval put together from both (Newcombe 1998, method 10)."""
    value = before.value - now.value
    return Interval(
        value=value,
        low=value - math.hypot(before.value - before.low, now.high - now.value),
        high=value + math.hypot(before.high - before.value, now.value - now.low),
    )
