# %% [markdown]
# # Your own LeRobot checkpoint
#
# What you need: the folder that LeRobot's training wrote (`pretrained_model`), and the dataset that
# it was trained on. LeRobot itself is not needed, and nothing in the files is executed.
#
# This page makes both first, so that you can run it: a policy folder, and five episodes as a
# LeRobotDataset v3.0. **With your own, set the two paths and skip this cell.**

# %%
import json
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from actlens import HookedACT, open_dataset
from actlens.sim.dataset_writer import DatasetFacts, Episode, finish, stage
from actlens.sim.video import VideoSettings

here = Path(mkdtemp())
policy, data = here / "outputs/train/checkpoints/last/pretrained_model", here / "data/so101"

HookedACT.from_pretrained("so101-pick-cube").save_pretrained(policy)
recorded = open_dataset("so101-pick-cube")
quick = VideoSettings(preset="ultrafast", crf=18)
facts = DatasetFacts("pick up the cube", "so101_simulated", 25, quick, "# Five episodes", {})
for number, index in enumerate(range(0, 100, 20)):
    labels = recorded.labels(index)
    cube = [labels[f"cube_{name}"] for name in ("x", "y", "z", "yaw")]
    pictures = {
        camera.key: recorded.frames(index, camera.key).transpose(0, 2, 3, 1)
        for camera in recorded.cameras
    }
    episode = Episode(
        state=recorded.states(index), action=recorded.actions(index),
        cube=np.stack(cube, 1), pictures=pictures, region="table", seed=number,
    )  # fmt: skip
    stage(data, number, episode, facts)
finish(data, facts)

# %% [markdown]
# ## Is it sound?
#
# `python -m actlens doctor PATH` looks at everything that can go wrong between a checkpoint and
# what LeRobot would run: files, shapes, normalisation, versions. In Python it is `diagnose`.

# %%
from rich.console import Console

from actlens.doctor import diagnose
from actlens.report.doctor import render

diagnosis = diagnose(policy)
Console(width=100).print(render(diagnosis))
assert diagnosis.healthy

# %% [markdown]
# It says what to mend where something is wrong. Here is a copy whose config promises another
# network:

# %%
from shutil import copytree

broken = copytree(policy, here / "broken")
config = json.loads((broken / "config.json").read_text())
config["chunk_size"] = 40
(broken / "config.json").write_text(json.dumps(config))
found = diagnose(broken)
Console(width=100).print(render(found))
assert not found.healthy

# %% [markdown]
# ## Load both

# %%
model = HookedACT.from_pretrained(policy)
dataset = open_dataset(data)
print(dataset.layout, "-", len(dataset.episodes), "episodes,", dataset.n_frames, "frames")
print("the policy's cameras:", [camera.key for camera in model.config.cameras])
print("the dataset's:       ", [camera.key for camera in dataset.cameras])

# %% [markdown]
# Does the policy do what was demonstrated? If it does not come near on its own training data, look
# for a wrong camera, unit or normalisation before anything else. Beside it: the error of answering
# with the demonstrated actions of another episode.

# %%
import torch

scenes = list(dataset.scenes(chunk=model.config.chunk, frames=[20]))
executed = model.config.n_action_steps
answers = torch.cat([model(scene).detach() for scene in scenes])[:, :executed]
shown = torch.stack([scene.action for scene in scenes])[:, :executed]
own, other = (answers - shown).abs().mean(), (shown.roll(1, 0) - shown).abs().mean()
print(f"off by {own:.1f} on average; another episode's actions by {other:.1f}")
assert own < other / 2

# %% [markdown]
# ## Patch two of its scenes
#
# Recordings hold no pair in which only one thing differs. `nearest_pairs` looks for frames of
# different episodes that are near in the arm's state and far in a label (without labels: far in the
# demonstrated actions). `alignment_frame` says what else differs: look at it before you believe a
# patch.

# %% alt="The pair that was found, seen by the first camera"
import matplotlib.pyplot as plt

from actlens.scenes.pairs import nearest_pairs

(pair,) = nearest_pairs(dataset, chunk=model.config.chunk, n_pairs=1)
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, (name, scene) in zip(
    axes, {"clean": pair.clean, "corrupt": pair.corrupt}.items(), strict=True
):
    axis.imshow(scene.observation[model.config.cameras[0].key].permute(1, 2, 0))
    axis.set_title(f"{name}: {scene.address}")
    axis.set_axis_off()
plt.show()

# %%
from actlens.scenes.alignment import alignment_frame

alignment_frame([pair]).round(3).T

# %% [markdown]
# Now the patches: the clean scene's tokens of one camera, or of the arm's state, put into the
# corrupt run where they enter the encoder and where they leave it.

# %%
import pandas as pd

from actlens.interventions import FromScene, Intervention, run, run_scene
from actlens.metrics import project

clean, corrupt = run_scene(model, pair.clean), run_scene(model, pair.corrupt)
groups = [*model.tokens.cameras, "state"]
sites = {"enters": "encoder.0.hook_resid_pre", "leaves": "encoder.hook_out"}
rows = {}
for name, hook in sites.items():
    patches = [
        Intervention.at(model.site(f"{hook}[{part}]"), FromScene("clean")) for part in groups
    ]
    effects = run(model, corrupt, patches, {"clean": clean})
    rows[name] = project(effects.actions, corrupt.actions, clean.actions).share.numpy()
shares = pd.DataFrame(rows, index=groups)
shares.round(2)

# %%
assert shares.loc[["top", "lateral"], "enters"].sum() > 0.5  # the pictures say where the cube is
assert abs(shares.loc["state", "enters"]) < 0.2

# %% [markdown]
# All parts, over as many pairs as your dataset has, with intervals and a report:
#
#     python -m experiments.patching --policy.path=PRETRAINED_MODEL --dataset.root=DATASET
#
# Then [is it a lookup table?](../how-to/is-it-a-lookup-table.md) (it wants some episodes that the
# policy was not trained on), and [more on loading](../how-to/your-own-policy.md). Original ACT's
# `policy_best.ckpt` and HDF5 episodes work alike: [original ACT](../how-to/original-act.md).
#
# !!! warning "When this misleads"
#     A recorded pair differs in more than its label: light, shadows, the arm by a little. Labels
#     are rare in real datasets; pairs are then far in what was *demonstrated*, which may be the
#     operator's mood. And a policy is only as sound as its normalisation: if the check against the
#     demonstrations fails, stop there.
