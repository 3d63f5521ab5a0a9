"""All the lenses of a policy."""

from collections.abc import Mapping

from actlens.lens.lenses import (
    Lens,
    Through,
    encoder_lens,
    head_lens,
    renormed,
    stream_lens,
    token_lens,
)
from actlens.lens.places import Sublayer, Variant, encoder_stream
from actlens.model.act import HookedACT
from actlens.tokens import TokenMap

PIXELS = "all cameras"
"""All pixel tokens, where there is more than one camera."""


def raw_lenses(model: HookedACT) -> tuple[Lens, ...]:
    """By depth: after every encoder block, then after every decoder sublayer; nothing fitted.

    The one behind the last encoder block is the policy itself, as is that of the last MLP.
    """
    config = model.config
    encoder = [encoder_lens(model, layer) for layer in range(config.n_encoder_layers + 1)]
    decoder = [
        stream_lens(model, layer, sublayer)
        for layer in range(config.n_decoder_layers)
        for sublayer in Sublayer
        if layer == 0 or sublayer is not Sublayer.START
    ]
    return (*encoder, *decoder)


def renorm_lenses(model: HookedACT) -> tuple[Lens, ...]:
    """The encoder's, through its last norm; none under pre-norm, where the raw ones do that."""
    if model.config.pre_norm:
        return ()
    layers = range(model.config.n_encoder_layers)
    return tuple(encoder_lens(model, i, renormed(model), Variant.RENORM) for i in layers)


def head_lenses(model: HookedACT) -> tuple[Lens, ...]:
    """Every cross-attention head alone, the others silent; none where there is one."""
    config = model.config
    if config.n_heads == 1:
        return ()
    return tuple(
        head_lens(model, layer, head)
        for layer in range(config.n_decoder_layers)
        for head in range(config.n_heads)
    )


def token_lenses(model: HookedACT, maps: Mapping[str, Through]) -> tuple[Lens, ...]:
    """Each group of tokens early while the others are final, and alone final.

    Args:
        maps: of the tokens at each layer, by hook point: a tuned lens' translators.
    """
    config = model.config
    return tuple(
        token_lens(
            model,
            layer,
            tokens,
            name,
            early=early,
            through=maps[encoder_stream(config, layer)],
            variant=Variant.TUNED,
        )
        for layer in range(config.n_encoder_layers)
        for name, tokens in token_groups(model.tokens).items()
        for early in (True, False)
        if early or len(tokens) < config.n_tokens
    )


def token_groups(tokens: TokenMap) -> dict[str, tuple[int, ...]]:
    """Every token that is no pixel, every camera, and all cameras together."""
    groups = {token.name: (token.index,) for token in tokens.tokens if token.camera is None}
    cameras = {
        name: tuple(range(*tokens.camera(name).indices(len(tokens)))) for name in tokens.cameras
    }
    if len(cameras) > 1:
        cameras[PIXELS] = tuple(i for group in cameras.values() for i in group)
    return groups | cameras
