# %% [markdown]
# # The action lens
#
# What would the policy do if its network ended here? The action lens (after the Diffusion lens,
# Toker et al. 2024) takes a state from the middle, skips what is left of that part of the network,
# and lets the rest decode it: every layer becomes a motion.

# %%
from actlens import HookedACT, open_dataset
from actlens.kinematics import SO101_SIMULATED
from actlens.lens import LensOptions, study_lenses

model = HookedACT.from_pretrained("so101-pick-cube")
known, new = (open_dataset(f"so101-pick-cube{end}") for end in ("", "-unseen"))
fitted = list(known.scenes(chunk=50, episodes=range(0, 100, 3), frames=[0]))
asked = {
    "demonstrations": list(known.scenes(chunk=50, episodes=range(1, 100, 9), frames=[0])),
    "strip": list(new.scenes(chunk=50, episodes=range(60, 90, 3), frames=[0])),
}
study = study_lenses(
    model, fitted, asked, arm=SO101_SIMULATED, options=LensOptions(heads=False, tokens=False)
)

# %% [markdown]
# A *raw* lens hands a state over as it is. It can mislead: the decoder was made to read what the
# encoder ends with, not what is said halfway. A *tuned* lens puts one affine map in between, fitted
# on demonstrations and asked about others. Its control is *shuffled*: the same map, fitted on the
# targets of other episodes, which cannot know this scene.
#
# The error is how far the gripper's tip would be from where the policy itself sends it, at frame 0,
# where nothing has moved yet.

# %%
errors = study.frame()
by_layer = errors[(errors.against == "policy") & (errors.part == "encoder")]
table = by_layer.pivot(index=["set", "layer"], columns="variant", values="tip_mm")
table[["raw", "tuned", "shuffled"]].round(1)

# %% alt="Error of the decoded motion by encoder layer: raw, tuned and shuffled lens"
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
colours = {"raw": "#b35806", "tuned": "#542788", "shuffled": "grey"}
for axis, name in zip(axes, asked, strict=True):
    for variant, colour in colours.items():
        rows = by_layer[(by_layer.set == name) & (by_layer.variant == variant)]
        rows = rows.sort_values("layer")
        axis.plot(rows.layer, rows.tip_mm, "o-", color=colour, label=variant)
        axis.fill_between(rows.layer, rows.tip_mm_low, rows.tip_mm_high, color=colour, alpha=0.15)
    axis.set(title=name, xlabel="encoder blocks that were run", xticks=range(4))
axes[0].set_ylabel("off the policy's tip, mm")
axes[0].legend()
plt.show()

# %%
shown = table.loc["demonstrations"]
assert shown.raw[3] < 0.1  # after the whole encoder the raw lens is the policy itself
assert (shown.raw[:2] > shown.tuned[:2]).all()  # the raw lens overstates the early layers' error
assert (shown.shuffled[:2] > 2 * shown.tuned[:2]).all()  # what a map alone can do is no knowledge
assert shown.tuned[1] < shown.tuned[0]

# %% [markdown]
# ## Look at it
#
# A decoded chunk is a path of the gripper. Drawn over the picture: where would each layer go? The
# ring is the cube, dashed is the demonstration.

# %% alt="The gripper's path as each encoder layer decodes it, over the top camera's picture"
import numpy as np

from actlens.cameras import known_cameras
from actlens.lens import decoded, encoder_lens
from actlens.report.paths import point_pixels, tip_pixels

scene = asked["demonstrations"][2]
raw = [encoder_lens(model, layer) for layer in range(4)]
tuned = [lens for lens in study.tuned.lenses(model) if lens.place.part == "encoder"]
tuned = [lens for lens in tuned if lens.variant == "tuned"]
chunks = decoded(model, [scene], [*raw, *tuned])[:, 0].numpy()

top = known_cameras(model.config.cameras, SO101_SIMULATED)[0]
cube = point_pixels(top, [scene.labels[f"cube_{axis}"] for axis in "xyz"])
figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained")
axes[1, 3].set_axis_off()
for axis, lens, chunk in zip(axes.flat, [*raw, *tuned], chunks, strict=False):
    axis.imshow(scene.observation["observation.images.top"].permute(1, 2, 0))
    axis.plot(*tip_pixels(top, SO101_SIMULATED, scene.action.numpy()).T, "w--", linewidth=1)
    path = tip_pixels(top, SO101_SIMULATED, chunk)
    axis.scatter(*path.T, c=np.arange(len(path)), cmap="plasma", s=6)
    axis.plot(*cube, "o", markersize=12, markerfacecolor="none", markeredgecolor="cyan")
    axis.set(xlim=(0, top.width), ylim=(top.height, 0), xticks=[], yticks=[])
    axis.set_title(lens.name, fontsize=9)
plt.show()

# %% [markdown]
# ## When does it decide?
#
# From which layer on does the decoded motion reach the cube, and is it nearer to this scene's
# motion than to that of nine others?

# %%
emergence = study.emergence().set_index(["set", "question", "variant"])
emergence.loc[
    (slice(None), ["reaches the cube", "is this scene's"], ["raw", "tuned"]),
    ["final", "layer", "null"],
].round(2)

# %% [markdown]
# `final` is how often the policy's own motion does it, `layer` the first number of encoder blocks
# after which it does; no layer is given where the policy itself does not. In the strip, beyond the
# demonstrations, nothing emerges, because nothing arrives.
#
# Single heads, groups of tokens, the decoder's sublayers, and the arm carrying all of it out in the
# simulator:
#
#     python -m experiments.lens
#     python -m experiments.lens --film 9
#
# [The action lens](../how-to/action-lens.md) tells what it finds on the bundled policy, [paths and
# films](../how-to/films.md) shows it.
#
# !!! warning "When this misleads"
#     A raw lens that errs shows that the *rest of the network* cannot read the state, not that it
#     is not in there. A tuned lens that succeeds shows that an affine map finds it, not that the
#     network uses it. Skipping layers makes states that the decoder never met. And 34 episodes fit
#     a map of 256 dimensions poorly: with more, tuned errors fall.
