"""Parts of a policy that may be trained while everything else stays as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from actlens.finetuning.errors import FinetuningError
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite


@dataclass(frozen=True)
class Part:
    """Some parameters of a policy, and the first activations that they have a say in."""

    name: str
    prefixes: tuple[str, ...]
    """What the names of its parameters begin with."""
    first: tuple[str, ...]
    """Hook points: everything that these do not change can be computed once and kept."""

    def weights(self, model: HookedACT) -> dict[str, Tensor]:
        """Its parameters by name, as they are now.

        Raises:
            FinetuningError: if the policy has none of them.
        """
        found = {
            name: parameter.detach()
            for name, parameter in model.named_parameters()
            if name.startswith(self.prefixes)
        }
        if not found:
            raise FinetuningError(
                f"This policy has no parameters {', '.join(self.prefixes)} ({self.name})."
            )
        return found


def size(weights: Mapping[str, Tensor]) -> int:
    """How many numbers some parameters hold."""
    return sum(weight.numel() for weight in weights.values())


def decoder_mlp(model: HookedACT) -> Part:
    """Keys and values of the decoder's MLP: both linear layers, of every decoder block."""
    layers = range(model.config.n_decoder_layers)
    return Part(
        "decoder MLP",
        tuple(f"decoder.{layer}.mlp." for layer in layers),
        tuple(f"decoder.{layer}.hook_mlp_out" for layer in layers),
    )


def cross_attention(model: HookedACT) -> Part:
    """How the decoder reads the encoder's output: all four projections, of every decoder block."""
    layers = range(model.config.n_decoder_layers)
    return Part(
        "cross-attention",
        tuple(f"decoder.{layer}.cross_attn." for layer in layers),
        tuple(f"decoder.{layer}.cross_attn.hook_{x}" for layer in layers for x in "qkv"),
    )


def head(model: HookedACT) -> Part:
    """The last linear layer and the norm in front of it."""
    return Part("head", ("ln_final.", "action_head."), ("hook_actions_normalized",))


def encoder(model: HookedACT, start: int = 0) -> Part:
    """All of the encoder's blocks from one on, norms included.

    Raises:
        FinetuningError: if there is no such block.
    """
    n = model.config.n_encoder_layers
    if not 0 <= start < n:
        raise FinetuningError(f"The encoder has blocks 0 to {n - 1}, not {start}.")
    blocks = tuple(f"encoder.{layer}." for layer in range(start, n))
    own_norm = ("encoder.ln_final.",) if model.config.pre_norm else ()
    return Part(
        "encoder" if not start else f"encoder from block {start}",
        (*blocks, *own_norm),
        _into_attention(f"encoder.{start}", pre_norm=model.config.pre_norm),
    )


def everything(model: HookedACT) -> Part:
    """All behind the tokens: encoder, decoder and head. Image trunk and projections stay."""
    into = encoder(model).first
    layers = (f"decoder.{layer}" for layer in range(model.config.n_decoder_layers))
    into_decoder = (
        name for block in layers for name in _into_attention(block, pre_norm=model.config.pre_norm)
    )
    prefixes = ("encoder.", "decoder.", "ln_final.", "action_head.")
    return Part("everything behind the tokens", prefixes, (*into, *into_decoder))


def output_weights(model: HookedACT) -> Part:
    """The values of the last decoder MLP alone: the matrix that ROME edits."""
    site = last_mlp(model)
    return Part("decoder MLP's values", (site.matrix,), (site.output,))


def cross_output(model: HookedACT) -> Part:
    """The output projection of the last decoder block's cross-attention alone."""
    block = last_mlp(model).block
    return Part(
        "cross-attention's output",
        (f"{block}.cross_attn.out_proj.weight",),
        (f"{block}.hook_cross_attn_out",),
    )


def head_matrix(model: HookedACT) -> Part:
    """The action head's matrix alone."""
    return Part("head's matrix", ("action_head.weight",), head(model).first)


def last_mlp(model: HookedACT) -> MLPSite:
    """The MLP in front of the head."""
    return MLPSite(f"decoder.{model.config.n_decoder_layers - 1}")


def _into_attention(block: str, *, pre_norm: bool) -> tuple[str, ...]:
    """What a block computes first."""
    if pre_norm:
        return (f"{block}.hook_normalized_resid_pre",)
    return tuple(f"{block}.attn.hook_{x}" for x in "qkv")
