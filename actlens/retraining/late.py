"""Does generalisation arrive late? Decoders trained long after they know what they were shown.

"Grokking" (Power et al. 2022): the error in what was trained settles, and much later the error
elsewhere falls, with weight decay above all. Here the decoder's end is trained on cached vectors,
from the policy's own weights and from new ones, on few and on all demonstrations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.retraining.curves import TRAINED, Curve, LateGeneralisation, Start
from actlens.retraining.entries import Entries
from actlens.retraining.learners import started
from actlens.statistics import Interval, pooled_ratio
from actlens.tails import Part, Shape, Tails, Training, draws, fit


@dataclass(frozen=True)
class LateOptions:
    """Which trainings are carried out."""

    steps: int = 2000
    sizes: tuple[int, ...] = (5, 20)
    """Numbers of demonstrations; all of them as well."""
    weight_decays: tuple[float, ...] = (0.0, 1.0)
    """AdamW's; 1 at a learning rate of 1e-3 is what grokking was found with."""
    starts: tuple[Start, ...] = (Start.ANEW, Start.POLICY)
    seeds: int = 2
    """Trainings of each kind, each on other demonstrations."""
    part: Part = Part.MLP
    """What is trained from the policy's weights; from new ones it is the whole end."""
    lr: float = 1e-3
    """Constant: where a rate falls, errors fall with it, however late."""
    batch_size: int = 64
    evaluations: int = 12
    """About evenly apart in the logarithm of the step."""
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 10 or self.evaluations < 3 or self.seeds < 1 or not self.starts:
            raise SceneError(
                "Watching a training needs 10 steps, 3 evaluations, a seed and a start: got "
                f"{self.steps}, {self.evaluations}, {self.seeds} and {len(self.starts)}."
            )

    def n_trainings(self, n_episodes: int) -> int:
        """How many trainings that is, of so many demonstrations."""
        sizes = len(dict.fromkeys((*self.sizes, n_episodes)))
        return sizes * self.seeds * len(self.starts) * len(self.weight_decays)

    @property
    def stops(self) -> tuple[int, ...]:
        """After which steps errors are taken: 0, then about evenly apart in the logarithm."""
        first = min(10, self.steps)
        apart = np.geomspace(first, self.steps, self.evaluations - 1).round().astype(int)
        return (0, *dict.fromkeys(apart.tolist()))


def late_generalisation(
    model: HookedACT,
    entries: Entries,
    elsewhere: Mapping[str, Entries],
    options: LateOptions | None = None,
    *,
    progress: Callable[[int], None] = lambda n_steps: None,
) -> LateGeneralisation:
    """Train the decoder's end for long, and watch errors where it was not trained.

    Args:
        model: whose encoder and cross-attention made the entries, and whose end is one start.
        entries: of the demonstrations.
        elsewhere: scenes that nobody was trained on, by name.
        progress: told how many steps of how many trainings were taken since it was last told.

    Raises:
        SceneError: if a size is not a number of episodes that there are, or there is nowhere else.
    """
    options = options or LateOptions()
    if not elsewhere:
        raise SceneError("Without scenes that were not trained on, nothing can arrive late.")
    if wrong := [n for n in options.sizes if not 1 <= n <= entries.n_episodes]:
        raise SceneError(f"There are {entries.n_episodes} episodes to train on, not {wrong[0]}.")
    subsets = _subsets(entries.n_episodes, options)
    curves = []
    for start in options.starts:
        for decay in options.weight_decays:
            curves += _train(model, entries, elsewhere, subsets, start, decay, options, progress)
    own = Tails.of(model, 1)
    sets = {TRAINED: entries, **elsewhere}
    policy = {name: _mean_of(one.errors(own.answers(one.x))[0]) for name, one in sets.items()}
    return LateGeneralisation(tuple(curves), policy)


def _mean_of(errors: Float[np.ndarray, " episode"]) -> Interval:
    return pooled_ratio(errors, np.ones_like(errors))


def _subsets(n: int, options: LateOptions) -> Bool[np.ndarray, "run episode"]:
    """The demonstrations of every run: sizes by seeds; larger sets of a seed hold its smaller."""
    rows = []
    for size in dict.fromkeys((*options.sizes, n)):
        for seed in range(options.seeds):
            order = np.random.default_rng([options.seed, seed]).permutation(n)
            rows.append(np.isin(np.arange(n), order[:size]))
    return np.stack(rows)


def _train(
    model: HookedACT,
    entries: Entries,
    elsewhere: Mapping[str, Entries],
    subsets: Bool[np.ndarray, "run episode"],
    start: Start,
    weight_decay: float,
    options: LateOptions,
    progress: Callable[[int], None],
) -> list[Curve]:
    """All sizes and seeds side by side."""
    n = len(subsets)
    if start is Start.POLICY:
        tails, part = Tails.of(model, n), options.part
    else:
        tails = started(Shape.of(model.config), entries, n, options.seed)
        part = Part.END
    generator = torch.Generator().manual_seed(options.seed)
    draw = draws(entries.members(subsets), options.batch_size, generator)
    taken: dict[str, list[np.ndarray]] = {name: [] for name in (TRAINED, *elsewhere)}
    last = 0

    def watch(step: int) -> None:
        nonlocal last
        for name, one in {TRAINED: entries, **elsewhere}.items():
            taken[name].append(one.errors(tails.answers(one.x, bf16=options.bf16)))
        progress((step - last) * n)
        last = step

    training = Training(
        options.steps, options.lr, weight_decay, one_cycle=False, part=part, bf16=options.bf16
    )
    stops = options.stops
    fit(tails, entries.x, entries.actions, draw, training, stops=stops, watch=watch)
    errors = {name: np.stack(parts) for name, parts in taken.items()}
    return [
        Curve(
            start,
            int(own.sum()),
            weight_decay,
            run % options.seeds,
            stops,
            {
                name: by_run[:, run][:, own] if name == TRAINED else by_run[:, run]
                for name, by_run in errors.items()
            },
        )
        for run, own in enumerate(subsets)
    ]
