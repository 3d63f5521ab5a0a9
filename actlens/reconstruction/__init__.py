"""What an action vector holds: scenes decoded from it, as numbers and as pictures.

moments = [Moment("frame 0", demonstrations, {"held-out cells": unseen})]
result = reconstruct(model, untrained_model, moments)
result.frames()["pictures"]

Cube and arm, and both cameras' pictures, are decoded from every site by ridge and kernel ridge, and
each figure stands beside what needs no action vector: the mean, the nearest demonstration, the
joint state, an untrained policy, scenes shuffled, and the most that can be drawn from the picture
itself. Without them a reconstruction shows the decoder's memory, not the policy's.
"""

from actlens.reconstruction.analysis import Watch, decode, reconstruct
from actlens.reconstruction.claims import CLAIM, claims_of
from actlens.reconstruction.detector import Found, find_red, outline, place_of
from actlens.reconstruction.material import Feature, Material, Moment, read_moment
from actlens.reconstruction.options import ReconstructionOptions
from actlens.reconstruction.pictures import Components, Errors, Judge, small_pictures
from actlens.reconstruction.quantities import Part, Quantity, quantities_of
from actlens.reconstruction.reading import Decoder, Fitted, Reading, read_all
from actlens.reconstruction.result import MomentRead, Reconstruction
from actlens.reconstruction.smoothers import Coordinates, Mixture, mixtures, nearest

__all__ = [
    "CLAIM",
    "Components",
    "Coordinates",
    "Decoder",
    "Errors",
    "Feature",
    "Fitted",
    "Found",
    "Judge",
    "Material",
    "Mixture",
    "Moment",
    "MomentRead",
    "Part",
    "Quantity",
    "Reading",
    "Reconstruction",
    "ReconstructionOptions",
    "Watch",
    "claims_of",
    "decode",
    "find_red",
    "mixtures",
    "nearest",
    "outline",
    "place_of",
    "quantities_of",
    "read_all",
    "read_moment",
    "reconstruct",
    "small_pictures",
]
