"""The claims about learning by heart, and about generalisation that arrives late."""

from actlens.claims import Claim, at_least, judged
from actlens.retraining.curves import LATE, LateGeneralisation, Settled
from actlens.retraining.study import MemorisationStudy

BY_HEART = "the decoder has learnt single demonstrations by heart"
COMES_LATE = "trained for long, the decoder MLP generalises late"
_MOST = 0.5


def memory_claims(study: MemorisationStudy) -> tuple[Claim, ...]:
    """How much of the error on an episode goes away because that very episode was learnt."""
    steps = {"as well trained as the policy": study.matched, "trained longest": max(study.own)}
    return tuple(
        judged(
            BY_HEART,
            f"{name}, {step} steps (nothing but memory helps: "
            f"{float(study.shuffled[step].share.estimate):.2f})",
            "share of the error on others that learning an episode takes away",
            study.own[step].share,
            null=float(study.linear.share.estimate),
            null_is="a linear read-out",
            rule=(at_least, _MOST),
        )
        for name, step in steps.items()
        if step in study.shuffled
    )


def late_claims(found: LateGeneralisation) -> tuple[Claim, ...]:
    """For trainings on all demonstrations that were watched after they had settled."""
    most = max(fall.n_episodes for fall in found.falls)
    return tuple(
        Claim(
            claim=COMES_LATE,
            reading=f"{fall.scenes}; start: {fall.start.value}, weight decay {fall.weight_decay:g}",
            figure="fall of the error there after the trained one has settled",
            value=float(fall.fall.estimate),
            low=float(fall.fall.low),
            high=float(fall.fall.high),
            null=fall.trained_fall,
            null_is="the trained error's own fall",
            rule=f"at least {LATE:g}, and more than the trained error",
            verdict=fall.is_late,
        )
        for fall in found.falls
        if fall.n_episodes == most and fall.settled_if is Settled.LAST
    )
