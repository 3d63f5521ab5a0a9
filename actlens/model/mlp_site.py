"""One MLP of the policy, by the name of its block."""

from dataclasses import dataclass
from typing import Self

from torch import nn

from actlens.errors import HookNameError
from actlens.model.act import HookedACT
from actlens.model.mlp import MLP
from actlens.text import did_you_mean, quoted


@dataclass(frozen=True)
class MLPSite:
    """One MLP that inference passes, by the name of its block: `decoder.0`, `encoder.2`.

    Its keys are the neurons' coefficients, its values the columns of the output weights (Geva et
    al. 2020): what it writes to the stream is `W @ key + bias`.
    """

    block: str

    @classmethod
    def of(cls, model: HookedACT, block: str) -> Self:
        """The site of a block.

        Raises:
            HookNameError: if the policy has no such block.
        """
        known = known_blocks(model)
        if block not in known:
            raise HookNameError(
                f"This policy has no block {quoted(block)} with an MLP; it has "
                f"{', '.join(known)}.{did_you_mean(block, known)}"
            )
        return cls(block)

    @property
    def keys(self) -> str:
        """The hook point of the keys."""
        return f"{self.block}.mlp.hook_post"

    @property
    def inputs(self) -> str:
        """The hook point of what the MLP reads."""
        return f"{self.block}.hook_normalized_resid_mid{'_cross' * self.in_decoder}"

    @property
    def output(self) -> str:
        """The hook point of what the MLP writes."""
        return f"{self.block}.hook_mlp_out"

    @property
    def matrix(self) -> str:
        """The name of the output weights, in the model's state dict."""
        return f"{self.block}.mlp.linear2.weight"

    def mlp(self, model: HookedACT) -> MLP:
        """The MLP itself."""
        mlp = model.get_submodule(f"{self.block}.mlp")
        assert isinstance(mlp, MLP)
        return mlp

    def layer(self, model: HookedACT) -> nn.Linear:
        """The output layer; its weights are `d_model neuron`."""
        return self.mlp(model).linear2

    @property
    def in_decoder(self) -> bool:
        """Whether it works on chunk positions; encoder blocks work on tokens."""
        return self.block.startswith("decoder.")


def known_blocks(model: HookedACT) -> tuple[str, ...]:
    """The blocks that have an MLP, in the order in which they run."""
    config = model.config
    encoder = (f"encoder.{layer}" for layer in range(config.n_encoder_layers))
    decoder = (f"decoder.{layer}" for layer in range(config.n_decoder_layers))
    return (*encoder, *decoder)
