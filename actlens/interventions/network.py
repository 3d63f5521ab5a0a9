"""ACT as a list of operations between hook points, as coarse as the interventions allow.

Where nobody reads or edits what lies between two hook points, one operation leads from the one to
the other, in memory that it may overwrite; where somebody does, each step is an operation of its
own. The operations use the model's own weights, and do what `actlens.model` does, batch first.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from actlens.config import ACTION_KEY, Activation
from actlens.errors import InterventionError
from actlens.interventions.softmax_update import attend, scores_of
from actlens.model.act import HookedACT
from actlens.model.attention import Attention
from actlens.model.backbone import STAGES
from actlens.model.mlp import MLP
from actlens.model.token_major import LayerNorm
from actlens.sites import Site

TOKEN_POS = "embed.hook_pos"
ACTIONS = "hook_actions_normalized"
"""In which effects are measured."""
QUERY_POS = "decoder.query_pos"
"""The learned positions of the queries: no hook point, but an input of the decoder's operations."""


ChangeInHalf = Callable[[Sequence[Tensor | None], Callable[[str], Tensor]], Tensor]
"""(changes of the inputs, None where there is none; the base run's activations in bfloat16 by
name, at the same places) -> the output's change."""


@dataclass(frozen=True)
class Op:
    """How one hook point's activation comes from others'; `compute` is None for inputs.

    Attributes:
        positionwise: each position of the output depends on that position of the inputs alone.
        scratch: memory that the operation needs besides its output, in multiples of the output's.
        change: the output's change from the inputs' changes, its large products in bfloat16; None
            where the operation is cheap, and computed in full precision anyway.
    """

    output: str
    inputs: tuple[str, ...] = ()
    compute: Callable[..., Tensor] | None = None
    positionwise: bool = False
    scratch: float = 0.0
    change: ChangeInHalf | None = None


@dataclass(frozen=True)
class Attend(Op):
    """The mix of values from queries, keys and values, with nothing in between watched.

    Single changed tokens update the softmax instead of redoing it (`softmax_update`).

    Attributes:
        skip: the stream that the attention's output is added to; empty for cross-attention.
        resid: the stream after it.
        gain: by how much the output projection scales a typical z.
    """

    prefix: str = ""
    skip: str = ""
    resid: str = ""
    gain: float = 1.0


def canonical(model: HookedACT, name: str) -> str:
    """The own name of the hook point that `name` (perhaps an alias) stands for.

    Raises:
        HookNameError: if there is none.
    """
    return model.hook_point(name).name or ""


def checked_point(model: HookedACT, site: Site) -> str:
    """The own name of a site's hook point, at which the engine can intervene.

    Raises:
        HookNameError: if there is no such hook point.
        InterventionError: if it lies behind what is measured, or the site selects scenes.
    """
    name = canonical(model, site.name)
    if "batch" in site.where:
        raise InterventionError(
            f"{site}: the engine makes each intervention on one scene, so there is no batch to "
            "select from: leave 'batch' out."
        )
    if name == "hook_actions":
        raise InterventionError(
            f"{site} lies after the normalised actions, in which effects are measured: edit "
            f"{ACTIONS} instead, in units of the demonstrations' spread."
        )
    return name


def network(model: HookedACT, touched: Collection[str]) -> tuple[Op, ...]:
    """The operations of one inference run, in order, with an output for every name in `touched`.

    Raises:
        InterventionError: if inference does not pass a touched hook point.
    """
    ops = tuple(_Builder(model, frozenset(touched)).build())
    if missing := set(touched) - {op.output for op in ops}:
        raise InterventionError(
            f"Inference does not pass {', '.join(sorted(missing))}: the CVAE encoder runs only "
            "when an action chunk is given. Use plain hooks there (model.hooks, with action=…)."
        )
    return ops


class _Builder:
    """Walks the model once, in the order of its forward."""

    def __init__(self, model: HookedACT, touched: frozenset[str]):
        self.model = model
        self.touched = touched
        self.ops: list[Op] = []

    def build(self) -> list[Op]:
        """All operations."""
        model = self.model
        self._embed()
        stream = "embed.hook_tokens"
        for layer in range(model.config.n_encoder_layers):
            stream = self._encoder_block(f"encoder.{layer}", stream)
        if model.config.pre_norm:
            self._norm("encoder.ln_final", "encoder.hook_out", stream)
        else:
            self._same("encoder.hook_out", stream)
        self.ops.append(Op("decoder.0.hook_resid_pre"))
        stream = ""
        for layer in range(model.config.n_decoder_layers):
            stream = self._decoder_block(layer, stream)
        norm, head = model.ln_final, model.action_head
        if normalized := self._norm_parts("ln_final", norm, stream):
            act = lambda x: _linear(x * norm.weight + norm.bias, head)
            self._add("hook_actions_normalized", (normalized,), act)
        else:
            act = lambda x: _linear(_layer_norm(x, norm), head)
            self._add("hook_actions_normalized", (stream,), act)
        self._add(
            "hook_actions",
            ("hook_actions_normalized",),
            lambda x: model.normalizer.unnormalize(ACTION_KEY, x),
        )
        return self.ops

    # ── one operation ────────────────────────────────────────────────────────────────────────

    def _watched(self, *names: str) -> bool:
        return not self.touched.isdisjoint(names)

    def _add(
        self,
        output: str,
        inputs: tuple[str, ...],
        compute: Callable[..., Tensor],
        *,
        positionwise: bool = True,
        scratch: float = 0.0,
        change: ChangeInHalf | None = None,
    ) -> None:
        self.ops.append(Op(output, inputs, compute, positionwise, scratch, change))

    def _same(self, output: str, source: str) -> None:
        self._add(output, (source,), lambda x: x)

    # ── parts ────────────────────────────────────────────────────────────────────────────────

    def _embed(self) -> None:
        embed, config = self.model.embed, self.model.config
        tokens = ["embed.hook_latent_token"]
        self.ops.append(Op("embed.hook_latent"))
        project = embed.latent_proj
        self._add(
            tokens[0], ("embed.hook_latent",), lambda x: _linear(x, project), positionwise=False
        )
        for name, present in (
            ("embed.hook_state_token", config.state_dim is not None),
            ("embed.hook_env_token", config.env_state_dim is not None),
        ):
            if present:
                self.ops.append(Op(name))
                tokens.append(name)
        for camera in config.cameras:
            self._camera(f"embed.{camera.name}")
            tokens.append(f"embed.{camera.name}.hook_tokens")
        self._add("embed.hook_tokens", tuple(tokens), _stack_tokens, positionwise=False)
        self.ops.append(Op(TOKEN_POS))

    def _camera(self, prefix: str) -> None:
        embed = self.model.embed
        self.ops.append(Op(before := f"{prefix}.hook_image"))
        for stage in STAGES:
            block = embed.backbone[stage]
            run = block if stage != STAGES[0] else lambda x, b=block: b(embed._stem(x))
            # Convolutions keep a few maps at a time; the stem's are larger than its stage's output.
            scratch = 4.0 if stage != STAGES[0] else 12.0
            self._add(f"{prefix}.hook_{stage}", (before,), run, positionwise=False, scratch=scratch)
            before = f"{prefix}.hook_{stage}"
        self._add(
            f"{prefix}.hook_tokens",
            (before,),
            lambda x: embed.image_proj(x).flatten(2).transpose(1, 2),
            positionwise=False,
        )

    def _encoder_block(self, block: str, stream: str) -> str:
        layer = self.model.encoder[int(block.split(".")[1])]
        self._same(f"{block}.hook_resid_pre", stream)
        resid = read = f"{block}.hook_resid_pre"
        if layer.pre_norm:
            read = f"{block}.hook_normalized_resid_pre"
            self._norm(f"{block}.ln1", read, resid)
        self._attention(
            f"{block}.attn", layer.attn, (read, TOKEN_POS), (read, TOKEN_POS), read,
            f"{block}.hook_attn_out", resid, f"{block}.hook_resid_mid",
        )  # fmt: skip
        resid = f"{block}.hook_resid_mid"
        read = f"{block}.hook_normalized_resid_mid"
        self._norm(f"{block}.{'ln2' if layer.pre_norm else 'ln1'}", read, resid)
        skip = resid if layer.pre_norm else read
        return self._mlp(block, layer.mlp, read, skip, None if layer.pre_norm else "ln2")

    def _decoder_block(self, number: int, stream: str) -> str:
        layer, block = self.model.decoder[number], f"decoder.{number}"
        memory = "encoder.hook_out"
        if number:
            self._same(f"{block}.hook_resid_pre", stream)
        resid = read = f"{block}.hook_resid_pre"
        if layer.pre_norm:
            read = f"{block}.hook_normalized_resid_pre"
            self._norm(f"{block}.ln1", read, resid)
        self._attention(
            f"{block}.attn", layer.attn, (read, QUERY_POS), (read, QUERY_POS), read,
            f"{block}.hook_attn_out", resid, f"{block}.hook_resid_mid",
        )  # fmt: skip
        resid = f"{block}.hook_resid_mid"
        read = f"{block}.hook_normalized_resid_mid"
        self._norm(f"{block}.{'ln2' if layer.pre_norm else 'ln1'}", read, resid)
        skip = resid if layer.pre_norm else read
        self._attention(
            f"{block}.cross_attn", layer.cross_attn,
            (read, QUERY_POS), (memory, TOKEN_POS), memory,
            f"{block}.hook_cross_attn_out", skip, f"{block}.hook_resid_mid_cross",
        )  # fmt: skip
        resid = f"{block}.hook_resid_mid_cross"
        read = f"{block}.hook_normalized_resid_mid_cross"
        self._norm(f"{block}.{'ln3' if layer.pre_norm else 'ln2'}", read, resid)
        skip = resid if layer.pre_norm else read
        return self._mlp(block, layer.mlp, read, skip, None if layer.pre_norm else "ln3")

    def _norm(self, norm_name: str, output: str, stream: str) -> None:
        norm = self.model.get_submodule(norm_name)
        assert isinstance(norm, LayerNorm)
        if normalized := self._norm_parts(norm_name, norm, stream):
            self._add(output, (normalized,), lambda x: x * norm.weight + norm.bias)
        else:
            self._add(output, (stream,), lambda x: _layer_norm(x, norm))

    def _norm_parts(self, norm_name: str, norm: LayerNorm, stream: str) -> str:
        """The name of the normalised stream if somebody watches inside the norm, else nothing."""
        scale, normalized = f"{norm_name}.hook_scale", f"{norm_name}.hook_normalized"
        if not self._watched(scale, normalized):
            return ""
        centre = lambda x: x - x.mean(-1, keepdim=True)
        deviation = lambda x: (centre(x).square().mean(-1, keepdim=True) + norm.eps).sqrt()
        self._add(scale, (stream,), deviation)
        self._add(normalized, (stream, scale), lambda x, s: centre(x) / s)
        return normalized

    def _attention(
        self,
        prefix: str,
        attn: Attention,
        q_inputs: tuple[str, str],
        k_inputs: tuple[str, str],
        v_input: str,
        out: str,
        skip: str,
        resid: str,
    ) -> None:
        (w_q, w_k, w_v), (b_q, b_k, b_v) = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
        split = lambda x: x.unflatten(-1, (attn.n_heads, -1))
        heads = lambda x, w, b: split(F.linear(x, w, b))
        in_half = lambda w: _then(split, _linear_in_half(w))
        q, k, v, scores, pattern, z, result = (
            f"{prefix}.hook_{name}"
            for name in ("q", "k", "v", "attn_scores", "pattern", "z", "result")
        )
        self._add(q, q_inputs, lambda x, pos: heads(x + pos, w_q, b_q), change=in_half(w_q))
        self._add(k, k_inputs, lambda x, pos: heads(x + pos, w_k, b_k), change=in_half(w_k))
        self._add(v, (v_input,), lambda x: heads(x, w_v, b_v), change=in_half(w_v))
        if self._watched(scores, pattern):
            self._add(scores, (q, k), scores_of, positionwise=False)
            self._add(pattern, (scores,), lambda s: s.softmax(-1), positionwise=False)
            mix = lambda p, v: (p @ v.transpose(1, 2)).transpose(1, 2)
            self._add(z, (pattern, v), mix, positionwise=False)
        else:
            gain = float(attn.out_proj.weight.detach().norm()) / len(attn.out_proj.weight) ** 0.5
            to_itself = skip if q_inputs == k_inputs else ""
            attending = Attend(
                z, (q, k, v), attend, prefix=prefix, skip=to_itself, resid=resid, gain=gain
            )
            self.ops.append(attending)
        project = attn.out_proj
        half = _linear_in_half(project.weight, flatten=True)
        if self._watched(result):
            self._add(result, (z,), lambda x: torch.einsum("bqhe,hed->bqhd", x, attn.W_O))
            self._add(out, (result,), lambda x: x.sum(2) + project.bias)
        elif self._watched(out):
            self._add(out, (z,), lambda x: _linear(x.flatten(2), project), change=half)
        else:
            self._add(
                resid,
                (z, skip),
                lambda x, s: _onto(_linear(x.flatten(2), project), s),
                change=_plus_skip(half),
            )
            return
        self._add(resid, (out, skip), lambda x, s: x + s)

    def _mlp(self, block: str, mlp: MLP, read: str, skip: str, last_norm: str | None) -> str:
        pre, post, out = (f"{block}.{x}" for x in ("mlp.hook_pre", "mlp.hook_post", "hook_mlp_out"))
        resid = f"{block}.hook_resid_post"
        act = F.relu if mlp.activation is Activation.RELU else F.gelu
        owned = torch.relu_ if mlp.activation is Activation.RELU else F.gelu
        if self._watched(pre, post):
            first, second = (_linear_in_half(x.weight) for x in (mlp.linear1, mlp.linear2))
            self._add(pre, (read,), lambda x: _linear(x, mlp.linear1), change=first)
            self._add(post, (pre,), act)
            self._add(out, (post,), lambda x: _linear(x, mlp.linear2), change=second)
        else:
            self._add(
                out,
                (read,),
                lambda x: _linear(owned(_linear(x, mlp.linear1)), mlp.linear2),
                scratch=mlp.linear1.out_features / mlp.linear2.out_features,
                change=_mlp_in_half(mlp, pre),
            )
        self._add(resid, (out, skip), lambda x, s: x + s)
        if last_norm is None:
            return resid
        carried = f"{block}.hook_normalized_resid_post"
        self._norm(f"{block}.{last_norm}", carried, resid)
        return carried


def _linear(x: Tensor, layer: torch.nn.Linear) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _layer_norm(x: Tensor, norm: LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _onto(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of `fresh` where it is large enough."""
    return fresh.add_(other) if len(fresh) >= len(other) else fresh + other


def _linear_in_half(weight: Tensor, *, flatten: bool = False) -> ChangeInHalf:
    """A linear layer's change: the sum of its inputs' changes times its weights."""
    in_half = cache(lambda: weight.detach().bfloat16())

    def change(changes: Sequence[Tensor | None], base: Callable[[str], Tensor]) -> Tensor:
        total = sum(x for x in changes if x is not None)
        assert isinstance(total, Tensor)
        return F.linear((total.flatten(2) if flatten else total).bfloat16(), in_half())

    return change


def _then(last: Callable[[Tensor], Tensor], first: ChangeInHalf) -> ChangeInHalf:
    return lambda changes, base: last(first(changes, base))


def _plus_skip(write: ChangeInHalf) -> ChangeInHalf:
    """The change of a stream: that of what is written to it, and its own."""

    def change(changes: Sequence[Tensor | None], base: Callable[[str], Tensor]) -> Tensor:
        written, skip = changes
        if written is None:
            assert skip is not None
            return skip
        moved = write([written], base)
        return moved if skip is None else moved + skip

    return change


def _mlp_in_half(mlp: MLP, pre: str) -> ChangeInHalf:
    """An MLP's change. That of a rectified unit is exact to a rounding of the change itself."""
    first, second = _linear_in_half(mlp.linear1.weight), _linear_in_half(mlp.linear2.weight)

    def change(changes: Sequence[Tensor | None], base: Callable[[str], Tensor]) -> Tensor:
        moved = first(changes, base)
        own = base(pre)
        if mlp.activation is Activation.RELU:
            # relu(a + d) - relu(a) = max(d, -a) + min(a, 0), without a difference of large numbers.
            moved = torch.maximum(moved, -own).add_(own.clamp_max(0))
        else:
            moved = _gelu_change(own.float(), moved.float())
        return second([moved], base)

    return change


def _gelu_change(a: Tensor, d: Tensor) -> Tensor:
    """gelu(a + d) - gelu(a); by the slope in the middle where the difference would cancel."""
    middle = a + d / 2
    density = (-middle.square() / 2).exp() / math.sqrt(2 * math.pi)
    slope = torch.special.ndtr(middle) + middle * density
    return torch.where(d.abs() < 0.05, slope * d, F.gelu(a + d) - F.gelu(a))


def _stack_tokens(*parts: Tensor) -> Tensor:
    batch = max(len(part) for part in parts)
    tokens = [part if part.ndim == 3 else part[:, None] for part in parts]
    return torch.cat([part.expand(batch, -1, -1) for part in tokens], 1)
