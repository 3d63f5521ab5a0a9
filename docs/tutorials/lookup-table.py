# %% [markdown]
# # Is it a lookup table?
#
# Does a policy know a rule, or has it learnt its demonstrations by heart? Two questions, and a
# verdict only where both have an answer:
#
# - **Function**: at places that nobody demonstrated, does it do better than its nearest
#   demonstration would?
# - **Mechanism**: between two demonstrations, does it jump as a table does, or change smoothly?

# %%
from actlens import HookedACT, open_dataset
from actlens.retrieval import run_demonstrations

model = HookedACT.from_pretrained("so101-pick-cube")
demonstrations = open_dataset("so101-pick-cube")
new = open_dataset("so101-pick-cube-unseen")  # cells left out of the table, then a strip beyond it

frames = [0, 37]
scenes = list(demonstrations.scenes(chunk=50, episodes=range(0, 100, 2), frames=frames))
shown = run_demonstrations(model, scenes)
held_out = list(new.scenes(chunk=50, episodes=range(30, 60, 2), frames=frames))
between = run_demonstrations(model, held_out)
beyond = run_demonstrations(model, new.scenes(chunk=50, episodes=range(60, 90, 2), frames=frames))

# %% [markdown]
# ## Function
#
# The yardstick is the demonstration that is nearest in the *world*, with weights fitted to retrieve
# as well as they can. Index 1: as good at unseen places as at home. 0: as bad as the nearest
# demonstration.

# %%
import pandas as pd

from actlens.kinematics import SO101_SIMULATED
from actlens.retrieval import TaskState, Yardstick, function_axis, generalisation_frame

yardstick = Yardstick.of(
    shown.actions, shown.counted, joints=model.config.joints, arm=SO101_SIMULATED
)
task = TaskState.of(shown, yardstick)
axes = {
    "between": function_axis(shown, between, yardstick, task),
    "beyond": function_axis(shown, beyond, yardstick, task),
}
tables = {name: generalisation_frame(axis.indices) for name, axis in axes.items()}
index = pd.concat(tables, names=["unseen"]).droplevel(1).set_index("measure", append=True)
wanted = ["index", "low", "high", "policy_trained", "policy_unseen", "nearest_unseen"]
index.loc[(slice(None), ["all joints", "tip, mm"]), wanted].round(2)

# %% [markdown]
# The gripper's index is *undefined*: its nearest demonstration is no worse than the policy is at
# home, so that these scenes cannot tell a rule from a table there. An index that has no value says
# why:

# %%
print(index.loc[("between", "gripper.pos"), "undefined"])

# %% [markdown]
# ## Mechanism
#
# How far does the action jump half way between two neighbouring demonstrations? Beside the policy
# stand two twins, planted on its own activations, which agree with it in every demonstrated scene:
# a linear *rule* (0) and a *table* (1). They show that the figure can come out either way.

# %%
from actlens.mechanism import JUMP, mechanism_axis

starts = [scene for scene in scenes if scene.frame == 0]
new_starts = [scene for scene in held_out if scene.frame == 0]
mechanism = mechanism_axis(model, starts, new_starts, memoriser=False)
mechanism.frame().set_index("statistic")[["value", "low", "high", "rule", "table"]].round(2)

# %% alt="The two axes: generalisation index against jumps, for unseen places between and beyond"
import matplotlib.pyplot as plt

from actlens.verdict import index_of, judge

jump = mechanism.of(JUMP)
figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
for colour, (name, found) in zip(("#b35806", "#542788"), axes.items(), strict=True):
    value = index_of(found)
    axis.errorbar(
        value.estimate, jump.value, fmt="o", color=colour, label=f"{name} the demonstrations",
        xerr=[[value.estimate - value.low], [value.high - value.estimate]],
        yerr=[[jump.value - jump.low], [jump.high - jump.value]],
    )  # fmt: skip
axis.axvline(0.5, color="grey", linestyle=":")
axis.axhline(0.5, color="grey", linestyle=":")
axis.set(xlim=(-0.1, 1.1), ylim=(-0.1, 1.1))
axis.set(xlabel="function: 0 retrieval, 1 as good as at home", ylabel="mechanism: jumps")
for x, y, word in ((0, 0, "smooth memoriser"), (0, 1, "lookup table"), (0.55, 0.2, "rule")):
    axis.text(x, y, word, color="grey")
axis.legend()
plt.show()

# %% [markdown]
# ## Verdict

# %%
verdict = judge(index_of(axes["between"]), mechanism, beyond=index_of(axes["beyond"]))
print(verdict.answer, "- one of:", ", ".join(verdict.candidates))
print(*verdict.missing, sep="\n")

assert jump.high < 0.5 < jump.table  # no table, where a table would be seen
assert index_of(axes["between"]).low > 0.5  # better than the nearest demonstration
assert "lookup table" not in verdict.candidates

# %% [markdown]
# It is no lookup table. Whether it extrapolates is *undecided* from so few scenes, and the verdict
# says what would decide it. All scenes, a memoriser trained for comparison, the monitor and the
# closed loop are in [is it a lookup table?](../how-to/is-it-a-lookup-table.md), or
#
#     python -m experiments.retrieval
#
# !!! warning "When this misleads"
#     A smooth decoder is no evidence against memory: one that was trained to memorise is smooth,
#     too. The index depends on the moments that are looked at: at frame 0 alone, before the arm's
#     pose gives the cube away, this policy is no better than retrieval beyond its demonstrations. A
#     table in front of the decoder would be seen by its function alone.
