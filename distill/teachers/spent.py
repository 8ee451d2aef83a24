"""What asking a teacher over the network took beside the answers themselves."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

# Upper ends of the classes that the time of a request is counted in [s]; the last class has none.
LATENCIES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


def _classes() -> list[int]:
    return [0] * (len(LATENCIES) + 1)


@dataclass
class Spent:
    """Counts of one job, or of several together."""

    requests: int = 0
    retries: int = 0
    rests: int = 0  # times that a server was left alone because it failed, or asked for it
    waited_seconds: float = 0.0  # of all requests together, until a server was there to be asked
    answered_seconds: float = 0.0  # of all requests together that were answered
    latencies: list[int] = field(default_factory=_classes)  # requests answered, by classes of LATENCIES
    # As the endpoint counts, by its own tokenizer; only where it says so.
    billed_prompt_tokens: int = 0
    billed_answer_tokens: int = 0
    unbilled: int = 0  # replies that did not say

    def answered(self, seconds: float) -> None:
        """Count a request that was answered."""
        self.answered_seconds += seconds
        self.latencies[bisect_left(LATENCIES, seconds)] += 1

    def plus(self, other: "Spent") -> "Spent":
        """Return what both jobs spent."""
        sums = {name: value + getattr(other, name) for name, value in vars(self).items() if name != "latencies"}
        both = zip(self.latencies, other.latencies, strict=True)
        return Spent(**sums, latencies=[own + more for own, more in both])


@runtime_checkable
class Remote(Protocol):
    """A teacher that is asked over the network."""

    spent: Spent  # by the last time it was asked


@dataclass(frozen=True)
class Effort:
    """What it took to ask; tokens are those that came of it, as the student counts them."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    spent: Spent | None = None  # None: nothing was asked over the network

    def plus(self, other: "Effort") -> "Effort":
        """Return what both took."""
        spent = self.spent.plus(other.spent) if self.spent and other.spent else self.spent or other.spent
        return Effort(
            self.seconds + other.seconds,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            spent,
        )
