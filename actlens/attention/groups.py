"""Tokens in the groups that claims are made about: state, latent, each camera, all pixels."""

from dataclasses import dataclass

from actlens.tokens import TokenMap

PIXELS = "all cameras"
"""The group of all pixel tokens, where there is more than one camera."""


@dataclass(frozen=True)
class TokenGroup:
    """Some tokens under one name. `is_part` is False for unions of other groups."""

    name: str
    tokens: tuple[int, ...]
    is_camera: bool = False
    is_part: bool = True


def token_groups(tokens: TokenMap) -> tuple[TokenGroup, ...]:
    """Latent, state, env_state where declared, each camera; then all cameras together.

    The groups that are parts make up all tokens, each once.
    """
    vectors = [TokenGroup(t.name, (t.index,)) for t in tokens.tokens if t.camera is None]
    cameras = [
        TokenGroup(name, tuple(range(*tokens.camera(name).indices(len(tokens)))), is_camera=True)
        for name in tokens.cameras
    ]
    pixels = tuple(i for group in cameras for i in group.tokens)
    whole = TokenGroup(PIXELS, pixels, is_camera=True, is_part=False)
    union = [whole] if len(cameras) > 1 else []
    return (*vectors, *cameras, *union)
