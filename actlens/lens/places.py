"""Where a lens looks, and how it makes what it finds there readable."""

from dataclasses import dataclass
from enum import StrEnum

from actlens.config import ACTConfig


class Part(StrEnum):
    """Kinds of states that are decoded."""

    ENCODER = "encoder"
    """All tokens, as they enter an encoder block or leave the encoder."""
    DECODER = "decoder"
    """The queries' residual stream, between two sublayers."""
    HEAD = "head"
    """What one cross-attention head writes."""
    ONLY_TOKENS = "only these tokens"
    """Some tokens as the encoder leaves them, the others as they were earlier."""
    BUT_TOKENS = "all but these tokens"
    """Some tokens as they were earlier, the others as the encoder leaves them."""
    BASELINE = "baseline"
    """No state at all."""


class Variant(StrEnum):
    """What is done to a state before the rest of the network reads it."""

    RAW = "raw"
    """Nothing, or the norm that stands there in any case."""
    RENORM = "renorm"
    """Normalised, then scaled and shifted as by the norm that the encoder ends with."""
    TUNED = "tuned"
    """An affine map that was fitted on demonstrations (Belrose et al. 2023)."""
    SHUFFLED = "shuffled"
    """The control of `TUNED`: fitted on the targets of other episodes' scenes."""
    MEAN = "mean"
    """Of heads: the others write what they write on average, instead of nothing. Of the baseline:
    the policy's mean chunk at the same frame of the demonstrations."""


class Sublayer(StrEnum):
    """Places in a decoder block's stream."""

    START = "start"
    """Before the first block's self-attention: no scene has been looked at."""
    SELF = "self-attention"
    CROSS = "cross-attention"
    """The action vector: what the MLP reads."""
    MLP = "MLP"


@dataclass(frozen=True)
class Place:
    """A state of the network that a lens decodes."""

    part: Part
    layer: int
    """Encoder: how many blocks were run. Decoder and heads: the block."""
    detail: str = ""
    """The sublayer that was run last, the head's number, the tokens' name."""

    @property
    def name(self) -> str:
        """`encoder 1`, `decoder start`, `cross-attention 0`, `head 3 of 0`, …"""
        match self.part:
            case Part.ENCODER:
                return f"encoder {self.layer}"
            case Part.DECODER:
                start = self.detail == Sublayer.START
                return "decoder start" if start else f"{self.detail} {self.layer}"
            case Part.HEAD:
                return f"head {self.detail} of {self.layer}"
            case Part.ONLY_TOKENS:
                return f"all but {self.detail} from encoder {self.layer}"
            case Part.BUT_TOKENS:
                return f"{self.detail} from encoder {self.layer}"
            case Part.BASELINE:
                return self.detail


MEAN_ACTION = Place(Part.BASELINE, 0, "mean action")
MEMORY = "encoder.hook_out"
"""What the decoder attends to."""


def encoder_stream(config: ACTConfig, layer: int) -> str:
    """The hook point that holds the tokens after some encoder blocks; all of them: the memory."""
    return MEMORY if layer == config.n_encoder_layers else f"encoder.{layer}.hook_resid_pre"


def decoder_stream(config: ACTConfig, layer: int, sublayer: Sublayer) -> str:
    """The hook point of the stream that a decoder block carries on after a sublayer."""
    normalized = "" if config.pre_norm else "normalized_"
    ends = {
        Sublayer.START: "hook_resid_pre",
        Sublayer.SELF: f"hook_{normalized}resid_mid",
        Sublayer.CROSS: f"hook_{normalized}resid_mid_cross",
        Sublayer.MLP: f"hook_{normalized}resid_post",
    }
    return f"decoder.{layer}.{ends[sublayer]}"


def last_stream(config: ACTConfig) -> str:
    """What the decoder's final norm reads."""
    return decoder_stream(config, config.n_decoder_layers - 1, Sublayer.MLP)
