"""Interventions of two well-known kinds, ready made: causal tracing and attention knockout."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from actlens.errors import InterventionError
from actlens.interventions.intervention import Edit, Intervention
from actlens.interventions.scene_run import SceneRun
from actlens.interventions.sources import Constant, FromScene, GaussianNoise
from actlens.model.act import HookedACT
from actlens.sites import Selection, Site

TOKENS = "embed.hook_tokens"


def token_spread(model: HookedACT, runs: Iterable[SceneRun]) -> dict[str, float]:
    """The standard deviation over scenes of each kind of token's entries: a camera's, the state's.

    Entry by entry about its own mean, then pooled over a kind's tokens; that of the latent token is
    0, a constant of the weights. Give as many scenes per episode.

    Raises:
        InterventionError: if there are fewer than two scenes.
    """
    tokens = [run[TOKENS][0].double() for run in runs]
    if len(tokens) < 2:
        raise InterventionError("A spread over scenes takes at least two scenes.")
    seen = torch.stack(tokens)
    deviation = seen - seen.mean(0)
    variance = deviation.square().sum(0) / (len(tokens) - 1)
    return {
        kind: float(variance[span.start : span.stop].mean().sqrt())
        for kind, span in _kinds(model).items()
    }


def noisy_tokens(
    model: HookedACT,
    tokens: Sequence[int],
    spread: Mapping[str, float],
    *,
    multiple: float = 3.0,
    seed: int = 0,
) -> Intervention:
    """Gaussian noise on some of the encoder's input tokens: the corrupted run of causal tracing.

    Each kind of token gets noise of `multiple` times its own spread (Meng et al. 2022, section 2.1,
    take three times), before positions are added. Average effects, not actions, over several seeds.

    Args:
        tokens: indices; the cells of an object, a whole camera, the state token.
        spread: from `token_spread`.
        seed: of the noise; a restored run must use the same.

    Raises:
        InterventionError: if no token is given, or one whose kind has no spread.
    """
    if stray := set(tokens) - set(range(len(model.tokens))) or not tokens:
        raise InterventionError(f"Noise needs indices of tokens; {stray or '()'} are none.")
    edits = []
    for number, (kind, span) in enumerate(_kinds(model).items()):
        chosen = tuple(token for token in dict.fromkeys(tokens) if token in span)
        if not chosen:
            continue
        if not spread.get(kind):
            raise InterventionError(f"The spread of {kind} tokens over scenes is not known, or 0.")
        # Every kind draws its own noise: under equal seeds all would get the same.
        noise = GaussianNoise(multiple * spread[kind], seed=len(model.tokens) * seed + number)
        edits.append(Edit(Site(TOKENS, {"token": chosen}), noise))
    return Intervention(tuple(edits))


def restored(
    model: HookedACT,
    corruption: Intervention,
    site: Site,
    *,
    window: int = 1,
    donor: str = "clean",
) -> Intervention:
    """The corruption with one part given back its clean activation: a cell of causal tracing.

    Args:
        corruption: such as `noisy_tokens`.
        site: what is given back, in a block if the window is larger than 1.
        window: consecutive blocks around the site's that are given back together, cut off at the
            ends of the stack, as Meng et al. restore MLPs and attentions.
        donor: the role of the run that is not corrupted.

    Raises:
        InterventionError: if a window is asked for around a site outside the blocks.
        HookNameError: if the site does not exist.
    """
    sites = [site]
    if window != 1:
        name = model.hook_point(site.name).name or ""
        stack, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        if window < 1 or not number.isdecimal():
            raise InterventionError(f"{site} has no window of {window} blocks around it.")
        config = model.config
        n_blocks = config.n_encoder_layers if stack == "encoder" else config.n_decoder_layers
        first = max(0, int(number) - window // 2)
        last = min(n_blocks, int(number) - (-window // 2))
        sites = [Site(f"{stack}.{block}.{rest}", site.where) for block in range(first, last)]
    restoring = (Edit(one, FromScene(donor)) for one in sites)
    return Intervention((*corruption.edits, *restoring), corruption.schedule)


def knock_out(
    model: HookedACT,
    attentions: Sequence[str],
    *,
    keys: Selection,
    queries: Selection | None = None,
    heads: Selection | None = None,
) -> Intervention:
    """Attention knockout: some queries can no longer see some keys (Geva et al. 2023, section 4).

    The scores of these edges become minus infinity, so that the others share their attention.

    Args:
        attentions: `encoder.1.attn`, `decoder.0.cross_attn`; several act jointly.
        keys: indices of what must not be seen (tokens, or queries in the decoder's own attention).
        queries: indices of what must not see; all if not given.
        heads: all if not given.

    Raises:
        InterventionError: if nothing is left to attend to, or no attention is given.
        HookNameError: if an attention or index does not exist.
    """
    edits = []
    for attention in attentions:
        point = model.hook_point(f"{attention}.hook_attn_scores")
        _, head, query, key = point.axes
        given = {head: heads, query: queries, key: keys}
        where = {axis: chosen for axis, chosen in given.items() if chosen is not None}
        config = model.config
        n = {"token": config.n_tokens, "query": config.chunk}
        sizes = (1, config.n_heads, *(n[axis.partition("_")[0]] for axis in (query, key)))
        out = torch.zeros(sizes, dtype=torch.bool)
        out[point.index(where, sizes)] = True
        if out.all(-1).any():
            raise InterventionError(f"{point.name}: without all keys nothing is left to see.")
        edits.append(Edit(Site(point.name or "", where), Constant(float("-inf"))))
    if not edits:
        raise InterventionError("Name an attention to knock edges out of.")
    return Intervention(tuple(edits))


def _kinds(model: HookedACT) -> dict[str, range]:
    """The tokens of each kind: the vectors one by one, then the cameras."""
    tokens = model.tokens
    vectors = {
        token.name: range(token.index, token.index + 1)
        for token in tokens.tokens
        if token.camera is None
    }
    cameras = {name: range(*tokens.camera(name).indices(len(tokens))) for name in tokens.cameras}
    return vectors | cameras
