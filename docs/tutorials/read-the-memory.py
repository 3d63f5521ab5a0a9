# %% [markdown]
# # Read the MLP's memory
#
# An MLP can be read as a memory (Geva et al. 2020): each neuron has a *key*, which looks for
# something in the stream, and a *value*, which is written when it is found. In a language model
# keys are read off sentences and values off words. Here keys are read off moments of
# demonstrations, and values in degrees.

# %%
from actlens import HookedACT, open_dataset
from actlens.keyvalue import analyse_mlp, find_triggers, run_entries

model = HookedACT.from_pretrained("so101-pick-cube")
dataset = open_dataset("so101-pick-cube")
scenes = dataset.scenes(chunk=50, episodes=range(0, 100, 4), frames=[0, 25, 50])
own, shuffled = find_triggers(
    model, "decoder.0", run_entries(model, scenes, "decoder.0"), draws=199
)

# %% [markdown]
# ## Keys: what triggers a neuron
#
# For each of the 1,024 neurons the strongest entries (a frame and a position of the chunk), at most
# one an episode, and what they share. Beside the policy's keys: *shuffled* keys, whose weights were
# put into another order, so that they mean nothing.

# %%
import pandas as pd

found = pd.DataFrame({"own": own.summary(), "shuffled": shuffled.summary()})
found.round(2)

# %% [markdown]
# Look at `with_pattern`: nearly all neurons have triggers that share something, and so have nearly
# all shuffled keys. Any direction in a policy's stream follows time and place. "This neuron fires
# when ..." is no finding by itself.

# %%
assert found.own["with_pattern"] > 0.9 and found.shuffled["with_pattern"] > 0.9

# %% [markdown]
# ## Values: what a neuron adds
#
# Behind the last decoder MLP nothing mixes chunk positions, so that the effect of ablating each
# neuron by itself is exact and cheap.

# %%
some = [dataset.scene(episode, frame, chunk=50) for episode, frame in enumerate(range(0, 64, 8))]
result = analyse_mlp(model, own, shuffled, some)
neurons = result.neurons()
strongest = neurons.sort_values("effect_rms", ascending=False).head(5)
adds = [column for column in neurons if column.startswith("adds ")]
strongest.set_index("neuron")[["active", "effect_rms", *adds]].round(2)

# %% alt="Three neurons: what triggers them, when in the chunk they speak, what they add"
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import Image

from actlens.keyvalue import show_neurons
from actlens.report.memory_pictures import save_memories

shown = show_neurons(
    model, "decoder.0", own.reading, strongest.neuron[:3].tolist(),
    lambda source, episode, frame: dataset.scene(episode, frame, chunk=50), n_triggers=3,
)  # fmt: skip
picture = Path(mkdtemp()) / "memories.png"
save_memories(result, neurons, shown, model, picture)
Image(picture)

# %% [markdown]
# ## How much of the action is it?

# %%
layer = result.layer_frame().set_index("name")
asked = [
    "a value points where its triggers go",
    "active memories at an entry",
    "memories that carry 50 %",
    "no single memory gives the action",
    "MLP replaced by its mean",
    "stream replaced by its mean",
]
layer.loc[asked, ["unit", "value", "low", "high", "null", "null_is"]].round(2)

# %% [markdown]
# Values do point where their triggers' actions go, more than other neurons' values: the memory is
# real. But no entry's action is given by one neuron, as a table's would be, and the stream that
# passes *beside* the MLP moves the action several times as much.

# %%
value, null = layer.value, layer.null
agreement = "a value points where its triggers go"
assert value[agreement] > null[agreement] + 0.1 and layer.p[agreement] < 0.05
assert value["no single memory gives the action"] > 0.9
assert value["stream replaced by its mean"] > 3 * value["MLP replaced by its mean"]

# %% [markdown]
# The whole dataset, with pictures and tables of all neurons, also in the encoder: [read an MLP as a
# memory](../how-to/read-a-memory.md), or
#
#     python -m experiments.keyvalue
#
# !!! warning "When this misleads"
#     Here are 75 frames of 25 episodes; the figures move with more. A picture of a neuron's
#     triggers always looks like a story: hold it against those of shuffled keys. An effect is what
#     an ablation does in these scenes, with all other neurons as they are; neurons that stand in
#     for one another look idle.
