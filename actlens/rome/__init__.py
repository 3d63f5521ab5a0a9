"""ROME (Meng et al. 2022) for a policy: in this scene, do this instead. No training.

statistics = key_statistics(model, dataset.scenes(chunk=50, frames=slice(None, None, 10)),
                            "decoder.0")
metric = KeyMetric.of(statistics)
request = Request(scene, Offset({"shoulder_pan.pos": 10.0}))
edit = make_edit(model, [request], metric)
with edit.apply(model):
    model(scene)  # ten degrees further, in all that is executed
export_policy(model, [edit], "edited-policy")

An MLP is a memory: its coefficients h are the keys, W h what it says to them (Geva et al. 2020).
The edit makes W say v* to the key k* of a scene and changes as little as it can of what W says to
the keys of the data: W' = W + (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*), C = E[h h^T].

That an edit works is no evidence that the behaviour was stored where it was made: edits at other
layers, and at random ones, may do as well (Hase et al. 2023).
"""

from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.mlp_site import MLPSite, known_blocks
from actlens.rome.cases import Case, Kind, cases_of
from actlens.rome.conflicts import Conflict
from actlens.rome.editing import EditOptions, make_edit, solve_edit
from actlens.rome.errors import EditError
from actlens.rome.evaluation import Change, Evaluated, Measure, Scale, evaluate
from actlens.rome.evaluation_result import RomeEvaluation
from actlens.rome.export import export_policy, model_card
from actlens.rome.files import load_edit, load_statistics, save_edit, save_statistics
from actlens.rome.jitter import NO_JITTER, Jitter
from actlens.rome.metric import KeyMetric, Readers
from actlens.rome.prepared import Prepared, prepare
from actlens.rome.record import EditRecord, RequestRecord
from actlens.rome.request import JointLimits, Offset, Request
from actlens.rome.ridge import RidgeCurve
from actlens.rome.scope import Scope, scoped
from actlens.rome.site_success import SiteOptions, SiteSuccess, site_success
from actlens.rome.situations import Places, Situation, places_of
from actlens.rome.statistics import KeyStatistics, key_statistics
from actlens.rome.study import Study
from actlens.rome.sweep import RidgeSweep, sweep_ridges
from actlens.rome.targets import TargetOptions, gather_targets
from actlens.rome.update import Exact, NullSpace, SoftLeastSquares
from actlens.rome.values import Adam, GaussNewton
from actlens.rome.weight_edit import Applied, WeightEdit, apply_edits, edited_actions

__all__ = [
    "NO_JITTER",
    "Adam",
    "Applied",
    "Case",
    "Change",
    "Conflict",
    "EditError",
    "EditOptions",
    "EditRecord",
    "Evaluated",
    "Exact",
    "GaussNewton",
    "Jitter",
    "JointLimits",
    "KeyMetric",
    "KeyStatistics",
    "Kind",
    "MLPRuns",
    "MLPSite",
    "Measure",
    "NullSpace",
    "Offset",
    "Places",
    "Prepared",
    "Readers",
    "Request",
    "RequestRecord",
    "RidgeCurve",
    "RidgeSweep",
    "RomeEvaluation",
    "Scale",
    "Scope",
    "SiteOptions",
    "SiteSuccess",
    "Situation",
    "SoftLeastSquares",
    "Study",
    "TargetOptions",
    "WeightEdit",
    "apply_edits",
    "cases_of",
    "edited_actions",
    "evaluate",
    "export_policy",
    "gather_targets",
    "key_statistics",
    "known_blocks",
    "load_edit",
    "load_statistics",
    "make_edit",
    "model_card",
    "places_of",
    "prepare",
    "save_edit",
    "save_statistics",
    "scoped",
    "site_success",
    "solve_edit",
    "sweep_ridges",
]
