"""Policies whose answer is known: what an analysis must get right before it is believed.

world = World(seed=1)
scenes = world.scenes(world.positions(Region.TRAIN, 60))
model = world.policy()
stored = Stored.of(model, scenes)
table = plant(model, stored, Table(), readout=world.readout)
rule = plant(model, stored, LinearRule(), readout=world.readout)
table.truth  # what an analysis of table.model should find

Every planted policy is a `HookedACT` of a real configuration that saves and loads as any other.
"""

from actlens.planted.circuits import (
    Additive,
    CopyHead,
    LatentSwitch,
    Phases,
    additive_policy,
    copy_head,
    dead_policy,
    latent_switch,
    phase_policy,
    scene_of,
)
from actlens.planted.description import Planted, Truth
from actlens.planted.disguise import Disguise
from actlens.planted.errors import PlantError
from actlens.planted.experts import Expert, LinearExpert, ReachExpert
from actlens.planted.gated import gated_pair, gated_policy
from actlens.planted.in_encoder import table_in_encoder
from actlens.planted.mechanisms import FeatureRule, LinearRule, Mechanism, Mixture
from actlens.planted.neurons import Role
from actlens.planted.readout import Readout
from actlens.planted.relay import relay_pairs, relay_policy
from actlens.planted.rewriting import in_double, rewritten
from actlens.planted.stored import Stored, action_vectors
from actlens.planted.tables import WIDE, Plateau, Table, Tent
from actlens.planted.training import (
    BY_HEART,
    TrainingOptions,
    retrieved,
    shuffled,
    trained,
    with_exceptions,
)
from actlens.planted.twins import answers, largest_error, plant
from actlens.planted.worlds import Region, World

__all__ = [
    "BY_HEART",
    "WIDE",
    "Additive",
    "CopyHead",
    "Disguise",
    "Expert",
    "FeatureRule",
    "LatentSwitch",
    "LinearExpert",
    "LinearRule",
    "Mechanism",
    "Mixture",
    "Phases",
    "PlantError",
    "Planted",
    "Plateau",
    "ReachExpert",
    "Readout",
    "Region",
    "Role",
    "Stored",
    "Table",
    "Tent",
    "TrainingOptions",
    "Truth",
    "World",
    "action_vectors",
    "additive_policy",
    "answers",
    "copy_head",
    "dead_policy",
    "gated_pair",
    "gated_policy",
    "in_double",
    "largest_error",
    "latent_switch",
    "phase_policy",
    "plant",
    "relay_pairs",
    "relay_policy",
    "retrieved",
    "rewritten",
    "scene_of",
    "shuffled",
    "table_in_encoder",
    "trained",
    "with_exceptions",
]
