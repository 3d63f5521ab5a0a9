# %% [markdown]
# # Patch one scene into another
#
# Two scenes differ in one thing: where the cube lies. Run the policy on both, put a part of one run
# into the other, and see how much of the difference between the two actions comes along. What
# carries it is what the policy uses.

# %% alt="The clean and the corrupt scene, seen by the top camera"
import matplotlib.pyplot as plt
import torch

from actlens import HookedACT, load_pairs

model = HookedACT.from_pretrained("so101-pick-cube")
pair = load_pairs("so101-cube-moved")[0]


def show(axis, scene, title):
    axis.imshow(scene.observation["observation.images.top"].permute(1, 2, 0))
    axis.set_title(title)
    axis.set_axis_off()


figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
show(left, pair.clean, "clean")
show(right, pair.corrupt, "corrupt: only the cube moved")

# %% [markdown]
# ## By hand
#
# The corrupt run gets the clean run's cross-attention output. It then carries out the clean scene's
# actions, to the bit: everything that the decoder knows of the scene passes there.

# %%
actions, clean = model.run_with_cache(pair.clean)
corrupt = model(pair.corrupt)


def put_clean(activation, hook):
    return clean[hook.name]


patched = model.run_with_hooks(
    pair.corrupt, fwd_hooks=[("decoder.0.hook_cross_attn_out", put_clean)]
)
pan = model.config.joints.index("shoulder_pan.pos")
for name, found in {"without the patch": corrupt, "with it": patched}.items():
    off = (found - actions)[0, :10, pan].abs().max()
    print(f"{name} the arm pans {off:.1f} degrees off")
assert torch.equal(patched, actions)

# %% [markdown]
# ## Every part, in both directions
#
# `patch_pairs` does so for each token at each depth, each head, each sublayer. *Denoise*: the share
# of the actions' difference that a clean part restores in the corrupt run. *Noise*: the share that
# a corrupt part destroys in the clean one. 0 is nothing, 1 everything. Here one pair, and an
# allowed error that is checked against exact patches, to be quick.

# %%
from actlens import patch_pairs
from actlens.patching import SweepOptions

result = patch_pairs(model, [pair], options=SweepOptions(max_error=0.002))
table = result.frame()
sublayers = table[table.unit == "sublayer"]
sublayers.set_index("hook")[["denoise", "noise", "null"]].round(2)

# %% [markdown]
# The *null* is the same patch with another donor: a scene with the corrupt scene's cube and
# everything else different. A part that restores nothing with the right donor, or as much with the
# wrong one, carries nothing of the cube. Two facts of the architecture show at once:

# %%
whole = table[table.part == "all tokens"]
print("all tokens together restore", whole.denoise.round(3).tolist())
constant = table[table.hook == "decoder.0.hook_attn_out"].denoise.item()
print("the decoder's self-attention restores", round(constant, 3))

assert (whole.denoise - 1).abs().max() < 1e-3
assert abs(constant) < 1e-3  # the decoder starts from zeros: its self-attention writes a constant

# %% alt="Restored share of each token of the top camera, at every depth of the encoder"
hooks = list(dict.fromkeys(part.hook for part in result.parts if part.token is not None))
maps = {hook: result.heatmap("top", hook, pair=0) for hook in hooks}
limit = max(abs(values).max() for values in maps.values())

figure, axes = plt.subplots(1, len(maps), figsize=(11, 2.4), layout="constrained")
picture = pair.corrupt.observation["observation.images.top"].float().mean(0)
for axis, (hook, values) in zip(axes, maps.items(), strict=True):
    axis.imshow(picture, cmap="gray", alpha=0.6)
    extent = (0, picture.shape[1], picture.shape[0], 0)
    drawn = axis.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=0.7, extent=extent)
    axis.set_title(hook, fontsize=8)
    axis.set_axis_off()
figure.colorbar(drawn, ax=axes, label="restored share")
plt.show()

# %% [markdown]
# Are these the patches of the picture in which the cube lies? Groups of tokens, patched together,
# tell: the cells of a camera whose pixels differ between the two scenes, and its other cells.

# %%
groups = table[table.unit == "group"].assign(depth=lambda t: t.hook.str.replace("hook_", ""))
shares = groups.pivot(index="part", columns="depth", values="denoise")
shares.round(2)

# %%
entering = shares["encoder.0.resid_pre"]
assert entering["top: other cells"] > entering["top: cells that differ"]

# %% [markdown]
# No: already at the encoder's input, most of the difference is carried by tokens *over equal
# pixels*. The ResNet sees far beyond a token's own cell and has spread the cube over the picture. A
# token is not the patch that it is drawn over, and the map above shows where the network keeps the
# cube, not where it is.

# %% [markdown]
# The same with eight pairs, intervals over episodes and a report, on this policy or yours:
#
#     python -m experiments.patching
#     python -m experiments.patching --policy.path=you/act --dataset.root=data/act
#
# !!! warning "When this misleads"
#     A patched token stands beside tokens of another scene: the mixture may lie outside anything
#     the policy ever saw. Sufficient (denoise) and necessary (noise) are different questions, and
#     the shares of single tokens need not add up to one. One pair gives no interval: use several,
#     of different episodes.
