"""What can be read off each site by a linear probe, and whether the policy uses it.

scenes = list(dataset.scenes(chunk=50, frames=[0]))
features = [*input_features(model, scenes), *site_features(model, scenes)]
targets = targets_of(scenes, model.config.joints)
episodes = np.array([scene.episode for scene in scenes])
probe(features, targets, episodes).frame()

Every figure has its rivals: the input (pixels, state), the output (the predicted chunk), an
untrained policy of the same shape, and control tasks in which every episode has another one's
values (Hewitt and Liang 2019). Later frames of an episode leak the world through the arm's pose;
frame 0 does not.
"""

from actlens.kernel_ridge import Fold, grouped_folds
from actlens.probing.causal import Used, follow_up
from actlens.probing.features import Feature, input_features, site_features, untrained
from actlens.probing.held_out import HeldOut, held_out_frame, probe_held_out
from actlens.probing.probe import Probed, ProbeTable, probe
from actlens.probing.ridge import baselines, predictions
from actlens.probing.targets import Target, targets_of

__all__ = [
    "Feature",
    "Fold",
    "HeldOut",
    "ProbeTable",
    "Probed",
    "Target",
    "Used",
    "baselines",
    "follow_up",
    "grouped_folds",
    "held_out_frame",
    "input_features",
    "predictions",
    "probe",
    "probe_held_out",
    "site_features",
    "targets_of",
    "untrained",
]
