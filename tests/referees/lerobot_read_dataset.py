"""Run by LeRobot's own Python: what its LeRobotDataset reads from a folder, as JSON.

Usage: python lerobot_read_dataset.py FOLDER OUTPUT.json FRAME...
"""

import json
import os
import sys
import tempfile
from pathlib import Path


def read_frames(path, timestamps, tolerance_s, backend=None):
    """LeRobot's `decode_video_frames` for environments where torchvision has lost its reader."""
    import av
    import numpy as np
    import torch

    wanted = {}
    with av.open(str(path)) as container:
        # To the keyframe before the first one wanted; an episode begins with one.
        container.seek(int(min(timestamps) * av.time_base))
        for frame in container.decode(video=0):
            if len(wanted) == len(timestamps):
                break
            for place, timestamp in enumerate(timestamps):
                if abs(frame.time - timestamp) < tolerance_s:
                    wanted[place] = frame.to_ndarray(format="rgb24")
    pictures = np.stack([wanted[place] for place in range(len(timestamps))])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def facts_of(item, cameras):
    return {
        "episode_index": int(item["episode_index"]),
        "frame_index": int(item["frame_index"]),
        "timestamp": float(item["timestamp"]),
        "task": item["task"],
        "state": item["observation.state"].tolist(),
        "action": item["action"].tolist(),
        "cube": item["label.cube"].tolist(),
        "picture_shapes": {key: list(item[key].shape) for key in cameras},
        "picture_sums": {key: round(float(item[key].double().sum() * 255)) for key in cameras},
    }


def main(folder, output, *frames):
    import torchvision
    from lerobot.datasets import lerobot_dataset
    from lerobot.datasets.utils import dataset_to_policy_features

    if not hasattr(torchvision.io, "VideoReader"):
        lerobot_dataset.decode_video_frames = read_frames
    read = {"root": folder, "video_backend": "pyav"}
    dataset = lerobot_dataset.LeRobotDataset("actlens/under-test", **read)
    window = {"action": [step / dataset.fps for step in range(20)]}
    windowed = lerobot_dataset.LeRobotDataset(
        "actlens/under-test", delta_timestamps=window, **read
    )[int(frames[-1])]
    facts = {
        "episodes": dataset.num_episodes,
        "frames": len(dataset),
        "fps": dataset.fps,
        "tasks": list(dataset.meta.tasks.index),
        "policy_features": {
            key: list(feature.shape)
            for key, feature in dataset_to_policy_features(dataset.features).items()
        },
        "stats": {
            key: {name: list(value.shape) for name, value in found.items()}
            for key, found in dataset.meta.stats.items()
        },
        "episode_columns": list(dataset.meta.episodes.features),
        "items": [facts_of(dataset[int(frame)], dataset.meta.camera_keys) for frame in frames],
        "window_shape": list(windowed["action"].shape),
        "window_padded": int(windowed["action_is_pad"].sum()),
    }
    Path(output).write_text(json.dumps(facts))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_HOME"] = cache
        main(*sys.argv[1:])
