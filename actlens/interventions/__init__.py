"""Interventions: what to change, into what, and when; made exactly, at the least cost.

scene = run_scene(model, corrupt)
donors = {"clean": run_scene(model, clean)}
site = model.site("encoder.1.hook_resid_pre[top[3,7]]")
effects = run(model, scene, [Intervention.at(site, FromScene("clean"))], donors)
"""

from actlens.interventions.budget import Audit, run_within
from actlens.interventions.closed_form import each_neuron_alone
from actlens.interventions.effects import Effects
from actlens.interventions.engine import activations_under, run
from actlens.interventions.evaluate import Precision
from actlens.interventions.intervention import ALWAYS, Edit, Intervention, Schedule
from actlens.interventions.paths import Path, run_paths
from actlens.interventions.plain_hooks import as_hooks
from actlens.interventions.scene_run import SceneRun, mean_of, run_scene
from actlens.interventions.sources import (
    Call,
    Constant,
    FromScene,
    GaussianNoise,
    Source,
    Steering,
    Subspace,
    random_subspace,
)
from actlens.interventions.tracing import knock_out, noisy_tokens, restored, token_spread

__all__ = [
    "ALWAYS",
    "Audit",
    "Call",
    "Constant",
    "Edit",
    "Effects",
    "FromScene",
    "GaussianNoise",
    "Intervention",
    "Path",
    "Precision",
    "SceneRun",
    "Schedule",
    "Source",
    "Steering",
    "Subspace",
    "activations_under",
    "as_hooks",
    "each_neuron_alone",
    "knock_out",
    "mean_of",
    "noisy_tokens",
    "random_subspace",
    "restored",
    "run",
    "run_paths",
    "run_scene",
    "run_within",
    "token_spread",
]
