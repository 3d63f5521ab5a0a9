"""Run by LeRobot's own Python: datasets that LeRobot writes, and the items it reads from them.

Usage: python lerobot_scenes.py OUTPUT [FOLDER]

OUTPUT/NAME is a dataset and OUTPUT/NAME.safetensors its items, one tensor a key, for every frame.
Of FOLDER, an existing dataset, every 53rd item is read into OUTPUT/folder.safetensors.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import torch
import torchvision
from av.video.reformatter import ColorRange, Colorspace
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset
from lerobot.datasets.video_utils import encode_video_frames
from PIL import Image
from safetensors.torch import save_file

FPS, CHUNK, LENGTHS, SIZE = 20, 8, (11, 6, 14, 9), (48, 64)
JOINTS = ["pan.pos", "lift.pos", "gripper.pos"]
CAMERAS = {"observation.images.top": SIZE, "observation.images.wrist": (34, 50)}


class VideoReader:
    """What LeRobot asks of `torchvision.io.VideoReader`, where torchvision has lost it (0.26).

    LeRobot's own `decode_video_frames` seeks, walks and chooses frames with it as ever.
    """

    def __init__(self, path, stream):
        self.container = av.open(path, metadata_errors="ignore")
        self.frames = self.container.decode(video=0)

    def seek(self, seconds, keyframes_only):
        stream = self.container.streams.video[0]
        offset = round(max(seconds, 0) / stream.time_base)
        self.container.seek(offset, backward=True, any_frame=False, stream=stream)
        self.frames = self.container.decode(video=0)

    def __iter__(self):
        for frame in self.frames:
            pixels = torch.tensor(frame.to_rgb().to_ndarray()).permute(2, 0, 1)
            yield {"data": pixels, "pts": float(frame.pts * frame.time_base)}


if not hasattr(torchvision.io, "VideoReader"):
    torchvision.io.VideoReader = VideoReader
    torchvision.set_video_backend = lambda backend: None


def features(kind):
    vector = {"dtype": "float32", "shape": (3,), "names": JOINTS}
    pictures = {
        key: {"dtype": kind, "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for key, size in CAMERAS.items()
    }
    cube = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "yaw"]}
    environment = {"dtype": "float32", "shape": (2,), "names": None}
    return {
        "observation.state": vector,
        "observation.environment_state": environment,
        "action": vector,
        "label.cube": cube,
    } | pictures


def demonstrations():
    """Episodes as lists of frames: smooth moving pictures with noise, and random vectors."""
    rng = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        frames = []
        for t in range(length):
            frame = {
                "observation.state": rng.normal(size=3).astype(np.float32),
                "observation.environment_state": rng.normal(size=2).astype(np.float32),
                "action": rng.normal(size=3).astype(np.float32),
                "label.cube": rng.normal(size=4).astype(np.float32),
                "task": f"task {number % 2}",
            }
            for key, (height, width) in CAMERAS.items():
                y, x = np.mgrid[:height, :width]
                wave = np.sin(x / 9 + t / 3 + number) + np.cos(y / 7 - t / 5)
                channels = np.stack([wave, wave[::-1], -wave], axis=-1) * 60 + 128
                noisy = channels + rng.normal(0, 8, channels.shape)
                frame[key] = noisy.clip(0, 255).astype(np.uint8)
            frames.append(frame)
        yield frames


def record(root, *, kind="video", one_file=False, **options):
    dataset = LeRobotDataset.create(
        "referee/scenes",
        fps=FPS,
        features=features(kind),
        root=root,
        use_videos=kind == "video",
        **options,
    )
    if not one_file:
        # Many files in many folders: every episode passes these limits.
        dataset.meta.update_chunk_settings(chunks_size=2)
        dataset.meta.info["data_files_size_in_mb"] = 0.001
        dataset.meta.info["video_files_size_in_mb"] = 0.001
    for frames in demonstrations():
        for frame in frames:
            dataset.add_frame(dict(frame))
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def retag(root):
    """Encodes the videos again as BT.709, in H.264 with B-frames in one group and in AV1.

    PyAV 15 ignores these tags, PyAV 18 obeys them. AV1 also keeps its full range as a tag, where
    H.264 has a pixel format of its own for it.
    """
    for path in root.glob("videos/*/*/*.mp4"):
        with av.open(str(path)) as source:
            frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        is_av1 = "observation.images.top" in path.parts
        tags = {"g": "2"} if is_av1 else {"g": "250", "bf": "2"}
        with av.open(str(path), "w") as target:
            stream = target.add_stream("libsvtav1" if is_av1 else "libx264", FPS, options=tags)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.colorspace = Colorspace.ITU709
            if is_av1:
                stream.codec_context.color_range = ColorRange.JPEG
            for frame in frames:
                target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            target.mux(stream.encode(None))


def record_v21(root, work):
    """The same demonstrations as LeRobot 0.3 laid them out; 0.4 cannot write this any more."""
    described = {
        "codebase_version": "v2.1",
        "robot_type": None,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 2,
        "total_videos": 2 * len(LENGTHS),
        "total_chunks": 2,
        "chunks_size": 3,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": json.loads((work / "info.json").read_text())["features"],
    }
    tables, lines, stats, first = {}, [], [], 0
    for number, frames in enumerate(demonstrations()):
        fields = {"episode_chunk": number // 3, "episode_index": number}
        rows = [{k: v for k, v in f.items() if k != "task" and k not in CAMERAS} for f in frames]
        for t, row in enumerate(rows):
            row |= {"timestamp": np.float32(t / FPS), "frame_index": t, "episode_index": number}
            row |= {"index": first + t, "task_index": number % 2}
        tables[described["data_path"].format(**fields)] = rows
        first += len(rows)
        for key in CAMERAS:
            pictures = work / f"{number}-{key}"
            pictures.mkdir()
            for t, frame in enumerate(frames):
                Image.fromarray(frame[key]).save(pictures / f"frame-{t:06d}.png")
            path = root / described["video_path"].format(video_key=key, **fields)
            encode_video_frames(pictures, path, FPS)
        tasks = [f"task {number % 2}"]
        lines.append({"episode_index": number, "tasks": tasks, "length": len(frames)})
        stats.append({"episode_index": number, "stats": made_up_stats(len(frames))})
    write_tables(root, tables)
    meta = root / "meta"
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(described))
    tasks = [{"task_index": i, "task": f"task {i}"} for i in range(2)]
    for name, content in (("episodes", lines), ("episodes_stats", stats), ("tasks", tasks)):
        (meta / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)) + "\n")


def made_up_stats(length):
    shapes = dict.fromkeys(CAMERAS, (3, 1, 1)) | {
        key: tuple(feature["shape"])
        for key, feature in features("video").items()
        if key not in CAMERAS
    }
    return {
        key: {
            name: np.full(shape, value).tolist()
            for name, value in {"min": 0.0, "max": 1.0, "mean": 0.5, "std": 0.1}.items()
        }
        | {"count": [length]}
        for key, shape in shapes.items()
    }


def write_tables(root, tables):
    import datasets
    from lerobot.datasets.utils import DEFAULT_FEATURES, get_hf_features_from_features

    columns = get_hf_features_from_features(features("video") | DEFAULT_FEATURES)
    for name, rows in tables.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lists = {key: [row[key] for row in rows] for key in columns}
        datasets.Dataset.from_dict(lists, features=columns).to_parquet(path)


def read(root, output, indices=None):
    window = {
        "action": [step / LeRobotDataset("referee/scenes", root=root).fps for step in range(CHUNK)]
    }
    dataset = LeRobotDataset(
        "referee/scenes", root=root, delta_timestamps=window, video_backend="pyav"
    )
    items = [dataset[i] for i in (range(len(dataset)) if indices is None else indices)]
    keys = [key for key, value in items[0].items() if isinstance(value, torch.Tensor)]
    save_file({key: torch.stack([item[key] for item in items]) for key in keys}, output)
    tasks = [item["task"] for item in items]
    output.with_suffix(".json").write_text(json.dumps(tasks))


def main(output, folder=None):
    output = Path(output)
    record(output / "many-files")
    record(output / "one-file", one_file=True)
    record(output / "pictures", kind="image")
    record(output / "retagged", one_file=True)
    retag(output / "retagged")
    for name in ("many-files", "one-file", "pictures", "retagged"):
        read(output / name, output / f"{name}.safetensors")
    work = output / "work"
    work.mkdir()
    (work / "info.json").write_text((output / "one-file/meta/info.json").read_text())
    record_v21(output / "v21", work)
    convert_dataset("v21", root=output, push_to_hub=False)
    read(output / "v21", output / "v21.safetensors")
    if folder is not None:
        total = LeRobotDataset("referee/scenes", root=folder).num_frames
        read(Path(folder), output / "folder.safetensors", range(0, total, 53))


if __name__ == "__main__":
    main(*sys.argv[1:])
