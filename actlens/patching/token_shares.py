"""One scene's tokens patched into another at one depth: a number a token, for maps and films."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.errors import HookNameError
from actlens.interventions import SceneRun
from actlens.model.act import HookedACT
from actlens.patching.parts import Unit, parts_of
from actlens.patching.sweep import SweepOptions, sweep_pair
from actlens.scene import Scene


@dataclass(frozen=True, eq=False)
class TokenShares:
    """How much of the difference of two scenes' actions each patched token restores.

    1 is all of it, 0 nothing; shares of tokens need not add up to those of groups.
    """

    tokens: Float[np.ndarray, " token"]
    cameras: Mapping[str, float]
    """All tokens of a camera patched together."""
    effect: float
    """Root mean square difference of the two scenes' actions, in dataset units."""
    error: float
    """The largest audited error (`actlens.interventions.Audit`); 0 if the patches are exact."""


def depth_hook(model: HookedACT, depth: int) -> str:
    """The hook point at a depth: what enters that encoder block, or the encoder's output.

    Raises:
        HookNameError: if there is no such depth.
    """
    blocks = range(model.config.n_encoder_layers)
    hooks = (*(f"encoder.{block}.hook_resid_pre" for block in blocks), "encoder.hook_out")
    if not 0 <= depth < len(hooks):
        raise HookNameError(
            f"There is no depth {depth}; this policy's encoder has 0 (its input tokens) to "
            f"{len(hooks) - 1} (its output)."
        )
    return hooks[depth]


def restored_by_token(
    model: HookedACT,
    base: SceneRun,
    clean: SceneRun,
    *,
    depth: int = 0,
    options: SweepOptions | None = None,
    scene: Scene | None = None,
) -> TokenShares:
    """Put each of the clean scene's tokens into the base run and project the action (denoising).

    Args:
        base: the run of the donor scene, into which is patched.
        clean: the run of the scene that is asked about.
        depth: the encoder block into which patched tokens go; 0 for the input tokens, the number
            of blocks for the encoder's output.
        options: as in `sweep_pair`.
        scene: of `clean`; positions after the end of its demonstration are not measured.

    Raises:
        HookNameError: if there is no such depth.
    """
    hook = depth_hook(model, depth)
    groups = {
        camera: tuple(range(*model.tokens.camera(camera).indices(len(model.tokens))))
        for camera in model.tokens.cameras
    }
    parts = [
        part
        for part in parts_of(model)
        if part.hook == hook
        and (part.unit is Unit.TOKEN or (part.unit is Unit.GROUP and part.group in groups))
    ]
    options = options or SweepOptions(by_position=False)
    sweep = sweep_pair(
        model, base, clean, clean, groups=groups, parts=parts, options=options,
        scenes=[] if scene is None else [scene],
    )  # fmt: skip
    share = sweep.along / sweep.total if sweep.total > 0 else np.full(len(parts), np.nan)
    n = len(model.tokens)
    return TokenShares(
        tokens=share[:n],
        cameras={part.group or "": float(s) for part, s in zip(parts[n:], share[n:], strict=True)},
        effect=sweep.effect,
        error=0.0 if sweep.audit is None else sweep.audit.largest,
    )
