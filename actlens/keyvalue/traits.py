"""What is known of a moment, as numbers that triggers may share."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from actlens.config import STATE_KEY, ACTConfig
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene
from actlens.tokens import TokenMap

FRAME, POSITION, TIME = "frame", "position", "frame + position"
"""When the policy looks; which action of the chunk; when that action is due."""
ROW, COLUMN = "row", "column"
"""Of an encoder's pixel token; NaN at other tokens."""


def demonstrated(joint: str) -> str:
    """The name of the trait that is the demonstrated action of a joint."""
    return f"demonstrated {joint}"


def felt(joint: str) -> str:
    """The name of the trait that is where a joint is."""
    return f"felt {joint}"


def trait_names(
    site: MLPSite, config: ACTConfig, labels: Sequence[str], *, has_state: bool, has_action: bool
) -> tuple[str, ...]:
    """What will be known of every entry, in order."""
    joints = config.joints
    state = _state_names(config) if has_state else ()
    if not site.in_decoder:
        return (FRAME, *labels, *map(felt, state), ROW, COLUMN)
    action = map(demonstrated, joints) if has_action else ()
    return (FRAME, *labels, *map(felt, state), POSITION, TIME, *action)


def trait_values(
    config: ACTConfig,
    tokens: TokenMap,
    site: MLPSite,
    names: Sequence[str],
    *,
    positions: np.ndarray,
    frames: np.ndarray,
    labels: dict[str, np.ndarray],
    states: Float[np.ndarray, "frame joint"] | None = None,
    actions: Float[np.ndarray, "frame chunk joint"] | None = None,
) -> Float[np.ndarray, "frame position trait"]:
    """The traits of some frames of one episode at some positions.

    Args:
        names: of `trait_names`.
        labels: by name, one value a frame; a name that is absent is not known here.
        states: in dataset units.
        actions: the demonstrated chunks, in dataset units.
    """
    joints = config.joints
    known: dict[str, np.ndarray] = {FRAME: frames[:, None]}
    known |= {name: np.asarray(values)[:, None] for name, values in labels.items()}
    if states is not None:
        named = zip(_state_names(config), states.T, strict=True)
        known |= {felt(joint): values[:, None] for joint, values in named}
    if site.in_decoder:
        known |= {POSITION: positions[None], TIME: frames[:, None] + positions}
        if actions is not None:
            due = actions[:, positions]
            known |= {demonstrated(joint): due[..., i] for i, joint in enumerate(joints)}
    else:
        at = [tokens[int(i)] for i in positions]
        cell = lambda x: np.nan if x is None else float(x)
        known[ROW] = np.array([[cell(token.row) for token in at]])
        known[COLUMN] = np.array([[cell(token.col) for token in at]])
    shape = (len(frames), len(positions))
    nothing = np.full((1, 1), np.nan)
    columns = [np.broadcast_to(known.get(name, nothing), shape) for name in names]
    return np.stack(columns, axis=-1).astype(np.float32)


def _state_names(config: ACTConfig) -> tuple[str, ...]:
    """Names of the state's dimensions: the action's, where there are as many."""
    n = config.state_dim or 0
    if n == len(config.joints):
        return tuple(config.joints)
    return tuple(f"state[{i}]" for i in range(n))


def scene_states(scenes: Sequence[Scene]) -> Float[np.ndarray, "scene joint"] | None:
    """The scenes' states in dataset units; None if they have none."""
    if any(STATE_KEY not in scene.observation for scene in scenes):
        return None
    return torch.stack([scene.observation[STATE_KEY] for scene in scenes]).float().numpy()


def scene_actions(scenes: Sequence[Scene]) -> Float[np.ndarray, "scene chunk joint"] | None:
    """The scenes' demonstrated chunks in dataset units; None if one has none."""
    actions = [scene.action for scene in scenes if scene.action is not None]
    return torch.stack(actions).float().numpy() if len(actions) == len(scenes) else None
