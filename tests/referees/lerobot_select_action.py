"""Run by LeRobot's interpreter: load policies, drive them tick by tick, save every action.

Usage: python lerobot_select_action.py FOLDER OBSERVATIONS OUT [FOLDER OBSERVATIONS OUT …], where
the last two of each are safetensors files. The actions are what LeRobot's own processors and
`select_action` give for each observation in turn, with a reset in the middle; `chunk` is the whole
chunk for the first observation.
"""

import sys

import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file, save_file


def drive(folder, observations, out):
    policy = ACTPolicy.from_pretrained(folder, strict=True)
    policy.eval()
    before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
    ticks = {key: value.clone() for key, value in load_file(observations).items()}
    count = len(next(iter(ticks.values())))
    actions = []
    policy.reset()
    for tick in range(count):
        if tick == count // 2 + 1:
            policy.reset()
        seen = before({key: value[tick] for key, value in ticks.items()})
        actions.append(after(policy.select_action(seen)))
    policy.reset()
    first = before({key: value[0] for key, value in ticks.items()})
    chunk = after(policy.predict_action_chunk(first)[0]).contiguous()
    save_file({"actions": torch.cat(actions).contiguous(), "chunk": chunk}, out)


torch.set_num_threads(1)
arguments = sys.argv[1:]
for i in range(0, len(arguments), 3):
    drive(*arguments[i : i + 3])
