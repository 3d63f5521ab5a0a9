"""What must change for a policy to reach a new place? One part is trained, all else stays.

    material = bundled_material(model, "so101-pick-cube")     # or scenes of your own
    found = finetune(model, material)                         # QUICK for a first look
    found.frame()            # errors before and after, at new and old places, by part
    claims_of(found)         # is it the decoder MLP?
    way = found.outcome("decoder MLP", "whole")
    way.tuned[0].policy(model).save_pretrained("adapted")

That the decoder MLP alone can be trained to reach a new place is no evidence that places are looked
up there: a head, a cross-attention or an encoder block may do it as well, with as few numbers.
"""

from actlens.finetuning.claims import claims_of
from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.kept import Behind, KeptScenes
from actlens.finetuning.locality import Locality
from actlens.finetuning.material import bundled_material
from actlens.finetuning.parts import (
    Part,
    cross_attention,
    decoder_mlp,
    encoder,
    everything,
    head,
    output_weights,
    size,
)
from actlens.finetuning.rank_one import rank_one_ways
from actlens.finetuning.result import NEW, Finetuning, Outcome
from actlens.finetuning.scoring import Errors, errors
from actlens.finetuning.study import QUICK, Material, Options, finetune
from actlens.finetuning.training import Recipe, Training
from actlens.finetuning.tuned import TunedPart
from actlens.finetuning.updates import AlongKey, Subspace, Update, Whole
from actlens.finetuning.ways import Budget, Way, equal_budget, large_ways, standard_ways

__all__ = [
    "NEW",
    "QUICK",
    "AlongKey",
    "Behind",
    "Budget",
    "Errors",
    "Finetuning",
    "FinetuningError",
    "KeptScenes",
    "Locality",
    "Material",
    "Options",
    "Outcome",
    "Part",
    "Recipe",
    "Subspace",
    "Training",
    "TunedPart",
    "Update",
    "Way",
    "Whole",
    "bundled_material",
    "claims_of",
    "cross_attention",
    "decoder_mlp",
    "encoder",
    "equal_budget",
    "errors",
    "everything",
    "finetune",
    "head",
    "large_ways",
    "output_weights",
    "rank_one_ways",
    "size",
    "standard_ways",
]
