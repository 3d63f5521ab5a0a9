"""An MLP read as a memory (Geva et al. 2020): when each neuron fires, and what it says then.

entries = run_entries(model, dataset.scenes(chunk=50, frames=slice(None, None, 15)), "decoder.0")
some = [dataset.scene(episode, 30, chunk=50) for episode in range(20)]
own, shuffled = find_triggers(model, "decoder.0", entries)
result = analyse_mlp(model, own, shuffled, some)
result.neurons()  # a row each: triggers, what they share, what the neuron adds to the action
result.layer_frame()  # the layer's figures beside their nulls

The rows of W_in are keys: they look for something in the stream. The columns of W_out are values:
what is written when it was found. Shuffled keys are the control throughout, because any direction
finds something in a policy's activations.
"""

from actlens.keyvalue.analysis import KeyValueAnalysis, Triggered, analyse_mlp, find_triggers
from actlens.keyvalue.attribution import Contributions
from actlens.keyvalue.crops import Crop, crops
from actlens.keyvalue.directions import DirectionError, Directions
from actlens.keyvalue.downstream import SampledDirection, sampled_direction
from actlens.keyvalue.effect_audit import EffectAudit, audit_effects
from actlens.keyvalue.effects import Effects
from actlens.keyvalue.entries import Entries, run_entries, stored_entries
from actlens.keyvalue.gallery import ShownNeuron, ShownTrigger, show_neurons
from actlens.keyvalue.identity import EpisodeIdentity, episode_identity
from actlens.keyvalue.keys import Keys
from actlens.keyvalue.layers import LayerNumber
from actlens.keyvalue.motion import Arrow, arrows, gripper_shift
from actlens.keyvalue.patterns import Patterns, find_patterns
from actlens.keyvalue.profiles import Profiles, scene_weights
from actlens.keyvalue.ranking import NeuronRanking, rank_neurons
from actlens.keyvalue.reading import Background, Reading, read_memories
from actlens.keyvalue.triggers import Triggers
from actlens.keyvalue.values import (
    ClosedFormValues,
    RankedValues,
    aligned,
    read_values,
    strongest,
)

__all__ = [
    "Arrow",
    "Background",
    "ClosedFormValues",
    "Contributions",
    "Crop",
    "DirectionError",
    "Directions",
    "EffectAudit",
    "Effects",
    "Entries",
    "EpisodeIdentity",
    "KeyValueAnalysis",
    "Keys",
    "LayerNumber",
    "NeuronRanking",
    "Patterns",
    "Profiles",
    "RankedValues",
    "Reading",
    "SampledDirection",
    "ShownNeuron",
    "ShownTrigger",
    "Triggered",
    "Triggers",
    "aligned",
    "analyse_mlp",
    "arrows",
    "audit_effects",
    "crops",
    "episode_identity",
    "find_patterns",
    "find_triggers",
    "gripper_shift",
    "rank_neurons",
    "read_memories",
    "read_values",
    "run_entries",
    "sampled_direction",
    "scene_weights",
    "show_neurons",
    "stored_entries",
    "strongest",
]
