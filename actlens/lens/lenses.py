"""Lenses as interventions: a state of the network put where its last parts can read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from actlens.errors import InterventionError
from actlens.interventions import Constant, Edit, FromScene, Intervention
from actlens.interventions.sources import Donors
from actlens.lens.places import (
    MEMORY,
    Part,
    Place,
    Sublayer,
    Variant,
    decoder_stream,
    encoder_stream,
    last_stream,
)
from actlens.model.act import HookedACT
from actlens.model.token_major import LayerNorm
from actlens.sites import Site

Through = Callable[[Float[Tensor, "batch position d_model"]], Tensor]
"""A map of states of the same shape: a norm, a `Translator`, or nothing at all."""

OWN = "lens"
"""The donor's role: the run itself, at another hook point."""
AVERAGE = "mean"
"""The donor's role: the mean of the demonstrations."""


def as_it_is(state: Tensor) -> Tensor:
    """The state itself."""
    return state


@dataclass(frozen=True, eq=False)
class Moved:
    """What one hook point holds, put in the place of another's or of some of its positions."""

    read: str
    write: Site
    through: Through = as_it_is


@dataclass(frozen=True, eq=False)
class Lens:
    """One way to let the rest of the network read a state that it was not made to read.

    Everything is an edit of the decoder, or of what it attends to, by what the run holds itself.
    """

    place: Place
    variant: Variant
    moved: Moved | None = None
    edits: tuple[Edit, ...] = ()
    """Further edits, such as sublayers that write nothing."""
    donors: Donors = field(default_factory=dict)
    """Of `edits`, by role."""

    @property
    def name(self) -> str:
        """The place and the variant."""
        return f"{self.place.name}, {self.variant}"

    @property
    def intervention(self) -> Intervention:
        """The lens as a value for the engine, hooks, nnsight and rollouts; see `donors_of`."""
        own = () if self.moved is None else (Edit(self.moved.write, FromScene(OWN)),)
        return Intervention((*own, *self.edits))

    def donors_of(self, run: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """What the intervention's sources ask for, of a run or a batch of runs.

        Args:
            run: what the hook point holds that the lens reads.
        """
        if self.moved is None:
            return dict(self.donors)
        moved = {self.moved.write.name: self.moved.through(run[self.moved.read])}
        return {**self.donors, OWN: moved}


def policy_itself(model: HookedACT) -> Lens:
    """The lens behind the last encoder block: the policy's own actions, bit for bit."""
    return encoder_lens(model, model.config.n_encoder_layers)


def encoder_lens(
    model: HookedACT, layer: int, through: Through | None = None, variant: Variant = Variant.RAW
) -> Lens:
    """The decoder reads the tokens as they are after `layer` blocks; later ones are skipped.

    The Diffusion lens (Toker et al. 2024) with the decoder in the place of the diffusion model.
    Under pre-norm, tokens pass the encoder's final norm. Layer 0 is what enters the first block.

    Args:
        through: instead of nothing (post-norm) or the final norm (pre-norm).

    Raises:
        InterventionError: if there is no such layer.
    """
    _check("encoder layer", layer, model.config.n_encoder_layers + 1)
    through = _raw(model, layer) if through is None else through
    moved = Moved(encoder_stream(model.config, layer), Site(MEMORY), through)
    return Lens(Place(Part.ENCODER, layer), variant, moved)


def token_lens(
    model: HookedACT,
    layer: int,
    tokens: Sequence[int],
    name: str,
    *,
    early: bool,
    through: Through | None = None,
    variant: Variant = Variant.RAW,
) -> Lens:
    """Some tokens as they are after `layer` blocks and the others final, or the other way round.

    Args:
        early: whether `tokens` are the early ones (what the policy lacks without the rest of their
            computation), or the only final ones (what they alone suffice for).
        through: as in `encoder_lens`, for the early tokens.

    Raises:
        InterventionError: if there is no such layer, or no token is early.
    """
    config = model.config
    _check("encoder layer", layer, config.n_encoder_layers + 1)
    chosen = {range(config.n_tokens)[token] for token in tokens}
    taken = tuple(i for i in range(config.n_tokens) if (i in chosen) == early)
    if not taken:
        raise InterventionError(f"{name!r} leaves no token to be taken from encoder layer {layer}.")
    through = _raw(model, layer) if through is None else through
    moved = Moved(encoder_stream(config, layer), Site(MEMORY, {"token": taken}), through)
    part = Part.BUT_TOKENS if early else Part.ONLY_TOKENS
    return Lens(Place(part, layer, name), variant, moved)


def renormed(model: HookedACT) -> Through:
    """The norm that the encoder ends with: the last block's under post-norm."""
    if model.config.pre_norm:
        return _norm(model.encoder.ln_final)
    return _norm(model.encoder[-1].ln2)


def stream_lens(model: HookedACT, layer: int, sublayer: Sublayer) -> Lens:
    """The decoder's stream after a sublayer: nothing later writes, every norm stands.

    A logit lens (nostalgebraist 2020) with the policy's own norms and head. Before the first
    cross-attention it is one chunk for all scenes.

    Raises:
        InterventionError: if there is no such layer.
    """
    config = model.config
    _check("decoder layer", layer, config.n_decoder_layers)
    order = list(Sublayer)[1:]
    skipped = [
        Site(f"decoder.{i}.{_WRITES[one]}")
        for i in range(layer, config.n_decoder_layers)
        for one in order
        if i > layer or sublayer is Sublayer.START or order.index(one) > order.index(sublayer)
    ]
    end = last_stream(config)
    moved = None if skipped else Moved(end, Site(end))
    edits = tuple(Edit(site, Constant(0.0)) for site in skipped)
    return Lens(Place(Part.DECODER, layer, str(sublayer)), Variant.RAW, moved, edits)


def tuned_stream_lens(
    model: HookedACT,
    layer: int,
    sublayer: Sublayer,
    through: Through,
    variant: Variant = Variant.TUNED,
) -> Lens:
    """The decoder's stream after a sublayer, mapped to what the final norm reads.

    Raises:
        InterventionError: if there is no such layer.
    """
    _check("decoder layer", layer, model.config.n_decoder_layers)
    read = decoder_stream(model.config, layer, sublayer)
    moved = Moved(read, Site(last_stream(model.config)), through)
    return Lens(Place(Part.DECODER, layer, str(sublayer)), variant, moved)


def head_lens(
    model: HookedACT,
    layer: int,
    head: int,
    mean: Float[Tensor, "query head d_head"] | None = None,
) -> Lens:
    """Of a decoder block's cross-attention one head alone; everything behind runs as usual.

    Args:
        mean: what the heads mix on average, at `decoder.LAYER.cross_attn.hook_z`. The other heads
            are set to it; to nothing if it is not given, which no later part ever saw.

    Raises:
        InterventionError: if there is no such layer or head, or no other head.
    """
    config = model.config
    _check("decoder layer", layer, config.n_decoder_layers)
    _check("head", head, config.n_heads)
    others = tuple(i for i in range(config.n_heads) if i != head)
    if not others:
        raise InterventionError("The policy has one head: alone it is the whole attention.")
    site = Site(f"decoder.{layer}.cross_attn.hook_z", {"head": others})
    place = Place(Part.HEAD, layer, str(head))
    if mean is None:
        return Lens(place, Variant.RAW, edits=(Edit(site, Constant(0.0)),))
    edit = Edit(site, FromScene(AVERAGE))
    return Lens(place, Variant.MEAN, edits=(edit,), donors={AVERAGE: {site.name: mean[None]}})


_WRITES = {
    Sublayer.SELF: "hook_attn_out",
    Sublayer.CROSS: "hook_cross_attn_out",
    Sublayer.MLP: "hook_mlp_out",
}


def _raw(model: HookedACT, layer: int) -> Through:
    """What the encoder's end does to a stream in any case."""
    whole = layer == model.config.n_encoder_layers
    return _norm(model.encoder.ln_final) if model.config.pre_norm and not whole else as_it_is


def _norm(norm: LayerNorm) -> Through:
    return lambda x: F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _check(what: str, number: int, n: int) -> None:
    if not 0 <= number < n:
        raise InterventionError(f"There is no {what} {number}: this policy has 0..{n - 1}.")
