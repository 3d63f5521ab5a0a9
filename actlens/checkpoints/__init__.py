"""Policies on disk: bytes -> (configuration, weights, normalisation) and back."""

from actlens.checkpoints.architecture import expected_shapes as expected_shapes
from actlens.checkpoints.bundled import bundled_names as bundled_names
from actlens.checkpoints.checkpoint import Checkpoint as Checkpoint
from actlens.checkpoints.original_act import DecoderLayersUsed as DecoderLayersUsed
from actlens.checkpoints.reading import load_checkpoint as load_checkpoint
from actlens.checkpoints.writing import save_checkpoint as save_checkpoint
