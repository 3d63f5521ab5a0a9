# %% [markdown]
# # Five-minute start
#
# Install, run, read the report. Nothing is downloaded at run time; no simulator and no GPU is
# needed.
#
#     git clone https://github.com/hooked-act/actlens && cd actlens
#     python3 -m venv .venv && .venv/bin/pip install -e .
#     source .venv/bin/activate
#
# ## Run
#
# A policy that was really trained, and pairs of scenes in which only the cube moved, come with the
# package. Which parts of the network carry where the cube is? Here two pairs, to be quick; without
# `--pairs` there are eight, in about half a minute on two cores.

# %% language="bash"
# python -m experiments.patching --pairs 2 --output-dir runs/first

# %% [markdown]
# ## Read
#
# - **At the top** stands what was asked, of which policy, on which scenes, and in which unit. A
#   share of 0 is nothing, 1 is the whole difference between the two scenes' actions.
# - **denoise** puts the clean scene's part into the corrupt run: is it *sufficient*? **noise** puts
#   the corrupt part into the clean run: is it *necessary*? **mm** is what that does to the gripper.
# - **null** is the same part of a scene that agrees with the corrupt one in the cube's place and
#   differs otherwise. A figure counts by its distance from its null, and **q** says how often such
#   a distance comes by chance. Two pairs can give neither an interval nor a small q, and the report
#   says so.
# - **controls**, at the very end, must hold exactly: all tokens together restore everything, and
#   what does not depend on the scene restores nothing. If they do not hold, believe nothing above
#   them.
#
# The same is in `report.html` of the run's folder, with maps to look into ([read a
# report](../how-to/reports.md)). `denoise_first_pair.png` draws the shares of single tokens over
# the pictures of the first pair:

# %% alt="Shares of single tokens over both cameras' pictures, at every depth of the encoder"
from IPython.display import Image

Image("runs/first/denoise_first_pair.png", width=900)

# %% [markdown]
# The tables are in the run's folder, one row a part:

# %%
import pandas as pd

sites = pd.read_parquet("runs/first/sites.parquet")
sublayers = sites[sites.unit == "sublayer"].set_index("hook")
sublayers[["denoise", "noise", "null", "gripper_mm"]].sort_values("denoise").tail(5).round(2)

# %%
assert abs(sublayers.denoise["decoder.0.hook_cross_attn_out"] - 1) < 0.01
assert sublayers.denoise["decoder.0.mlp.hook_post"] < 0.2

# %% [markdown]
# So all that the decoder knows of the cube passes through its cross-attention, and hardly any of it
# through its MLP. That bears on a question: [is it a lookup table?](lookup-table.md)
#
# ## Go on
#
# - every claim of the hypothesis at once: `python -m experiments.hypothesis --quick` (two minutes)
# - [first hooks](first-hooks.md): read and change activations yourself
# - [your own LeRobot checkpoint](your-lerobot-checkpoint.md)
#
# !!! warning "When this misleads"
#     Two pairs are an anecdote. The bundled policy is small, trained in a simulator on one task:
#     what holds for it need not hold for yours. Figures differ a little between machines, since
#     rounding does.
