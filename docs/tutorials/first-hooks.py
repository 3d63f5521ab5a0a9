# %% [markdown]
# # First hooks
#
# A hook point is a place in the network with a name and named axes. You read what passes there, or
# put something else in its place. The bundled policy was trained to lift a cube from a table; it
# comes with pairs of scenes in which only the cube moved.

# %%
from actlens import HookedACT, load_pairs

model = HookedACT.from_pretrained("so101-pick-cube")
pair = load_pairs("so101-cube-moved")[0]
scene = pair.clean

print(model.config.joints)
print(len(model.tokens), "tokens from", model.tokens.cameras, "and", model.tokens.names[:2])

# %% alt="The scene as the two cameras see it"
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, camera in zip(axes, model.config.cameras, strict=True):
    axis.imshow(scene.observation[camera.key].permute(1, 2, 0))
    axis.set_title(camera.name)
    axis.set_axis_off()

# %% [markdown]
# ## Read
#
# `run_with_cache` runs the policy once and keeps every activation by its name, as in
# TransformerLens. The [table of hook points](../reference/hook-points.md) has all names. A key may
# also be the address of a part: one neuron, one head, one token.

# %%
actions, cache = model.run_with_cache(scene)
print("actions", tuple(actions.shape))  # degrees, and percent of the gripper

for key in (
    "decoder.0.cross_attn.hook_pattern",  # batch head query token
    "decoder.0.hook_action_vector",  # all that the decoder's MLP is told of the scene
    "decoder.0.mlp.hook_post[123]",  # one memory coefficient, at each position of the chunk
    "encoder.1.hook_resid_pre[top[3,7]]",  # one patch of the top camera's picture
):
    print(key, tuple(cache[key].shape))

assert actions.shape == (1, 50, 6)
assert cache["decoder.0.mlp.hook_post[123]"].shape == (1, 50)

# %% [markdown]
# Which part of the picture is a token? `model.tokens` knows. Here is where the decoder looks when
# it plans the first action: the attention of all heads, averaged, over the top camera.

# %% alt="Attention of the first query over the top camera's picture"
import torch

pattern = cache["decoder.0.cross_attn.hook_pattern"][0, :, 0].mean(0)  # token
rows, columns = model.tokens.grid("top")
attention = pattern[model.tokens.camera("top")].reshape(rows, columns)

picture = scene.observation["observation.images.top"].permute(1, 2, 0)
figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
axis.imshow(picture)
extent = (0, picture.shape[1], picture.shape[0], 0)
drawn = axis.imshow(attention, cmap="magma", alpha=0.6, extent=extent)
figure.colorbar(drawn, label="attention")
axis.set_axis_off()
plt.show()

assert torch.isclose(pattern.sum(), torch.tensor(1.0))
rect = model.tokens.pixels(model.tokens.index("top[3,7]"))
assert (rect.top, rect.left, rect.bottom, rect.right) == (96, 224, 128, 256)

# %% [markdown]
# It does not look at the cube: the brightest patch lies at the table's edge. Whoever reads
# attention as "what the policy uses" has to explain that; [patching](patch-two-scenes.md) does.

# %%
red, green, blue = scene.observation["observation.images.top"].float()
cube = (red > 1.8 * green.maximum(blue)) & (red > 80)  # the only red thing on the table
cells = model.tokens.in_mask("top", cube)
share = pattern[list(cells)].sum() / pattern[model.tokens.camera("top")].sum()
print(f"the {len(cells)} patches with the cube get {share:.1%} of the top camera's attention")
assert int(attention.argmax()) + model.tokens.camera("top").start not in cells

# %% [markdown]
# ## Change
#
# A hook is a function of the activation and of the hook point. What it returns, or edits in place,
# takes the activation's place. Afterwards the *receipt* says what the hook did, so that a hook
# which did nothing never looks like a result.


# %%
loudest = cache["decoder.0.mlp.hook_post"][0, :10].mean(0).argmax().item()


def silence(post, hook):
    post[..., loudest] = 0


without = model.run_with_hooks(scene, fwd_hooks=[("decoder.0.mlp.hook_post", silence)])
(receipt,) = model.receipts
print(receipt)
print(f"neuron {loudest} moves the actions by at most {(without - actions).abs().max():.1f}")

assert receipt.fired == 1 and receipt.changed > 0
assert torch.equal(model(scene), actions)  # the hook is gone

# %% [markdown]
# A name that does not exist is an error that knows better ([all errors](../errors/index.md)).

# %%
from actlens import ActlensError

try:
    model.run_with_cache(scene, names_filter="decoder.0.mlp.hook_pots")
except ActlensError as error:
    print(type(error).__name__, "-", error)
    assert "Did you mean 'decoder.0.mlp.hook_post'" in str(error)
else:
    raise AssertionError("a misspelt name must not pass")

# %% [markdown]
# Next: [patch one scene into another](patch-two-scenes.md), which turns "it looks there" into "this
# is what it uses". Interventions that are more than a function are
# [values](../how-to/interventions.md).
#
# !!! warning "When this misleads"
#     Attention is not effect: a token can get much of it and change nothing, because its value is
#     small or because others stand in for it ([measure it](../how-to/attention-claims.md)). Setting
#     a neuron to zero may put it where it never is; a neuron's mean is often the fairer absence.
#     One scene is one scene.
