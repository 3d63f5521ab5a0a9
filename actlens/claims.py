"""Claims that figures can support or refute, each with its interval, its null and its rule."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from actlens.statistics import Interval


class Support(StrEnum):
    """What the figures say about a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    """The interval holds the limit, or there is none."""


@dataclass(frozen=True)
class Claim:
    """One reading of one claim."""

    claim: str
    reading: str
    figure: str
    """What `value` is."""
    value: float
    low: float
    high: float
    null: float
    """NaN where there is none."""
    null_is: str
    rule: str
    """When the claim is supported; refuted is the opposite."""
    verdict: Support


Rule = tuple[Callable[[Interval, float], Support], float]
"""`at_most` or `at_least`, and the limit."""


def at_most(interval: Interval, limit: float) -> Support:
    """Supported if the whole interval lies at or below the limit, refuted if above."""
    low, high = float(interval.low), float(interval.high)
    if high <= limit:  # False for NaN
        return Support.SUPPORTED
    return Support.REFUTED if low > limit else Support.UNDECIDED


def at_least(interval: Interval, limit: float) -> Support:
    """Supported if the whole interval lies at or above the limit, refuted if below."""
    low, high = float(interval.low), float(interval.high)
    if low >= limit:
        return Support.SUPPORTED
    return Support.REFUTED if high < limit else Support.UNDECIDED


def judged(
    claim: str,
    reading: str,
    figure: str,
    found: Interval,
    *,
    null: float,
    null_is: str,
    rule: Rule,
) -> Claim:
    """A claim with what the rule says of its figure."""
    test, limit = rule
    return Claim(
        claim=claim,
        reading=reading,
        figure=figure,
        value=float(found.estimate),
        low=float(found.low),
        high=float(found.high),
        null=null,
        null_is=null_is,
        rule=f"{'at most' if test is at_most else 'at least'} {limit:g}",
        verdict=test(found, limit),
    )
