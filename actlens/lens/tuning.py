"""The tuned lens: a map for every state, fitted on demonstrations, and its shuffled control."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from actlens.errors import SceneError
from actlens.lens.decoding import BATCH
from actlens.lens.lenses import Lens, encoder_lens, head_lens, tuned_stream_lens
from actlens.lens.places import (
    MEMORY,
    Sublayer,
    Variant,
    decoder_stream,
    encoder_stream,
    last_stream,
)
from actlens.lens.translator import PENALTIES, Moments, Translator, fitted
from actlens.model.act import HookedACT
from actlens.scene import Scene, episode_numbers, stack

DATASET_ACTIONS = "hook_actions"
FEWEST = 4
"""Episodes that a lens is tuned on at least: two folds, two in each for the control."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was fitted on demonstrations."""

    translators: Mapping[str, Translator]
    """By the hook point that is read."""
    shuffled: Mapping[str, Translator]
    """The same, with the targets of other episodes' scenes."""
    means: Mapping[int, Mapping[str, Tensor]]
    """By frame, the mean over scenes of the policy's chunk, in dataset units, at `hook_actions`,
    and of what cross-attention heads mix at their hook points, where there are several heads."""
    n_scenes: int
    n_episodes: int

    def lenses(self, model: HookedACT, frame: int | None = None) -> tuple[Lens, ...]:
        """The tuned lenses and their controls, by depth, and single heads with the others' mean.

        Args:
            frame: whose means heads are set to; of all frames if not given.
        """
        config, found = model.config, []
        for variant, maps in ((Variant.TUNED, self.translators), (Variant.SHUFFLED, self.shuffled)):
            for layer in range(config.n_encoder_layers):
                through = maps[encoder_stream(config, layer)]
                found.append(encoder_lens(model, layer, through, variant))
            for layer, sublayer in decoder_places(model):
                through = maps[decoder_stream(config, layer, sublayer)]
                found.append(tuned_stream_lens(model, layer, sublayer, through, variant))
        for layer in range(config.n_decoder_layers if config.n_heads > 1 else 0):
            mean = self.mean(_heads(layer), frame)
            found += [head_lens(model, layer, head, mean) for head in range(config.n_heads)]
        return tuple(found)

    def mean(self, name: str, frame: int | None = None) -> Tensor:
        """A mean at that frame; of all frames alike, where none was fitted on at that one."""
        if frame in self.means:
            return self.means[frame][name]
        return torch.stack([means[name] for means in self.means.values()]).mean(0)


def decoder_places(model: HookedACT) -> list[tuple[int, Sublayer]]:
    """Places of the decoder's stream, but for the last, where nothing is left to translate."""
    n = model.config.n_decoder_layers
    every = [
        (layer, sublayer)
        for layer in range(n)
        for sublayer in Sublayer
        if layer == 0 or sublayer is not Sublayer.START
    ]
    return every[:-1]


@torch.no_grad()
def tune(
    model: HookedACT,
    scenes: Sequence[Scene],
    *,
    penalties: Sequence[float] = PENALTIES,
    n_folds: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Tuned:
    """Fits a map from every state to the later one that the decoder, or its head, reads.

    Encoder: from the tokens after each block to `encoder.hook_out`. Decoder: from the stream after
    each sublayer to what the final norm reads. Scenes are streamed: nothing is kept but sums.

    The map minimises the error of states, not of actions, and reads each position by itself: it
    says what a token holds, not what attention might gather from others.

    Args:
        penalties: see `ridge`; chosen with whole episodes left out.
        seed: of folds, and of which scene stands for which in the control.

    Raises:
        SceneError: if there are fewer than four episodes, or a scene does not fit the policy.
    """
    targets, config = _targets(model), model.config
    heads = [_heads(i) for i in range(config.n_decoder_layers)] if config.n_heads > 1 else []
    averaged = [DATASET_ACTIONS, *heads]
    names = list(dict.fromkeys([*targets, *targets.values(), *averaged]))
    episodes = episode_numbers(scenes)
    folds = _folds(episodes, n_folds, seed)
    sums: dict[tuple[str, int], Moments] = {}
    control: dict[tuple[str, int], Moments] = {}
    means: dict[int, _Mean] = {}
    for fold, batch in _batches(episodes, folds, seed):
        some = [scenes[i] for i in batch]
        kept = model.run_with_cache(stack(some), names_filter=names)[1]
        for read, target in targets.items():
            x, y = kept[read], kept[target]
            for into, of in ((sums, y), (control, y.roll(1, 0))):
                more = Moments.of(x, of)
                into[read, fold] = into[read, fold] + more if (read, fold) in into else more
        for i, scene in enumerate(some):
            mean = means.setdefault(scene.frame, _Mean())
            mean.add({name: kept[name][i] for name in averaged})
        progress(len(some))
    solve = lambda of: {
        read: fitted([of[read, fold] for fold in range(int(folds.max()) + 1)], penalties)
        for read in targets
    }
    return Tuned(
        translators=solve(sums),
        shuffled=solve(control),
        means={frame: mean.values() for frame, mean in sorted(means.items())},
        n_scenes=sum(mean.count for mean in means.values()),
        n_episodes=len(folds),
    )


class _Mean:
    """Of some tensors over scenes, summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, one: Mapping[str, Tensor]) -> None:
        self.count += 1
        for name, value in one.items():
            self._dtypes[name] = value.dtype
            self._sums[name] = self._sums.get(name, 0) + value.double()

    def values(self) -> dict[str, Tensor]:
        return {
            name: (total / self.count).to(self._dtypes[name]) for name, total in self._sums.items()
        }


def _targets(model: HookedACT) -> dict[str, str]:
    """From every hook point that is read to the one that it is mapped to."""
    config = model.config
    tokens = {encoder_stream(config, i): MEMORY for i in range(config.n_encoder_layers)}
    end = last_stream(config)
    return tokens | {decoder_stream(config, *place): end for place in decoder_places(model)}


def _heads(layer: int) -> str:
    return f"decoder.{layer}.cross_attn.hook_z"


def _folds(episodes: Int[np.ndarray, " scene"], n: int, seed: int) -> Int[np.ndarray, " episode"]:
    """The fold of each episode; two episodes at least in every fold."""
    n_episodes = int(episodes.max()) + 1 if len(episodes) else 0
    if n_episodes < FEWEST:
        raise SceneError(
            f"A lens is tuned on {FEWEST} episodes at least, got {n_episodes}: the penalty is "
            "chosen on episodes that are left out, the control takes another episode's scene."
        )
    order = np.random.default_rng(seed).permutation(n_episodes)
    folds = np.empty(n_episodes, np.int64)
    folds[order] = np.arange(n_episodes) % min(n, n_episodes // 2)
    return folds


def _batches(
    episodes: Int[np.ndarray, " scene"], folds: Int[np.ndarray, " episode"], seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Scenes of one fold and one moment, each of another episode, two at least."""
    rng = np.random.default_rng(seed)
    moment = np.zeros(len(episodes), np.int64)
    for episode in range(len(folds)):
        moment[episodes == episode] = np.arange((episodes == episode).sum())
    for fold in range(int(folds.max()) + 1):
        for one in range(int(moment.max()) + 1):
            chosen = rng.permutation(np.flatnonzero((folds[episodes] == fold) & (moment == one)))
            if len(chosen) < 2:
                continue
            for part in np.array_split(chosen, max(1, round(len(chosen) / BATCH))):
                yield fold, part.tolist()
