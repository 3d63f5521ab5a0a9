"""Is a policy better than the nearest demonstration? Exact retrieval, and the function axis.

    demonstrations = run_demonstrations(model, dataset.scenes(chunk=50, frames=[0, 25, 50]))
    yardstick = Yardstick.of(demonstrations.actions, demonstrations.counted, joints=…, arm=…)
    task = TaskState.of(demonstrations, yardstick)
    climb(demonstrations, yardstick, task=task).frame()        # retrieval at every site, by rival
    unseen = run_demonstrations(model, scenes_with_expert_actions)
    axis = function_axis(demonstrations, unseen, yardstick, task)
    generalisation_frame(axis.indices), snap_frame(axis.snaps), axis.similarity

The ladder asks which site's distance retrieves the right action (VINN, Pari et al. 2022; kNN-LM,
Khandelwal et al. 2020). It misleads in three ways, each with its control in the table:

- a network's own sites were trained on all demonstrations: leaving an episode out of the search
  does not leave it out of the network. Only scenes that were never demonstrated are fair to them.
- where smoothing over neighbours or one linear map of the same keys does better than the nearest
  neighbour, a good nearest neighbour is no evidence of a table.
- any policy looks general beside a poor oracle: the task state's weights are fitted.

Behaviour cannot tell a smooth memoriser from a table, nor a rule from a table that tiles the table
top: the mechanism is another axis.
"""

from actlens.retrieval.by_scenes import function_frames
from actlens.retrieval.demonstrations import Demonstrations, run_demonstrations
from actlens.retrieval.errors import ALL_JOINTS, TIP, Errors, Yardstick
from actlens.retrieval.estimators import LADDER, Estimator, Kernel, Memory, Retrieval, Ridge
from actlens.retrieval.function_axis import FunctionAxis, function_axis
from actlens.retrieval.generalisation import (
    GeneralisationIndex,
    generalisation,
    generalisation_frame,
)
from actlens.retrieval.growth import distance_to_demonstrations, growth_exponent
from actlens.retrieval.jackknife import Undefined, Value, jackknife
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.ladder import Ladder, Rung, climb
from actlens.retrieval.large_errors import (
    Warned,
    by_episode_mean,
    large_errors,
    warned,
    warned_frame,
)
from actlens.retrieval.metric import Metric
from actlens.retrieval.monitor import Detection, Monitor, detection
from actlens.retrieval.oracle import TaskState
from actlens.retrieval.search import NearestNeighbours, Neighbours
from actlens.retrieval.similarity import LookupSimilarity, lookup_similarity
from actlens.retrieval.sites import Activation, Observation, PerPosition, Pixels, Site, sites_of
from actlens.retrieval.snapping import Snap, snap, snap_frame
from actlens.retrieval.stored import stored_demonstrations
from actlens.retrieval.surroundings import beyond_demonstrations
from actlens.retrieval.table_size import TableSize, cover, table_size

__all__ = [
    "ALL_JOINTS",
    "LADDER",
    "TIP",
    "Activation",
    "Demonstrations",
    "Detection",
    "Errors",
    "Estimator",
    "FunctionAxis",
    "GeneralisationIndex",
    "Kernel",
    "Ladder",
    "LookupSimilarity",
    "Memory",
    "Metric",
    "Monitor",
    "NearestNeighbours",
    "Neighbours",
    "Observation",
    "PerPosition",
    "Pixels",
    "Retrieval",
    "RetrievalError",
    "Ridge",
    "Rung",
    "Site",
    "Snap",
    "TableSize",
    "TaskState",
    "Undefined",
    "Value",
    "Warned",
    "Yardstick",
    "beyond_demonstrations",
    "by_episode_mean",
    "climb",
    "cover",
    "detection",
    "distance_to_demonstrations",
    "function_axis",
    "function_frames",
    "generalisation",
    "generalisation_frame",
    "growth_exponent",
    "jackknife",
    "large_errors",
    "lookup_similarity",
    "run_demonstrations",
    "sites_of",
    "snap",
    "snap_frame",
    "stored_demonstrations",
    "table_size",
    "warned",
    "warned_frame",
]
