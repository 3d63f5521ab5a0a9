"""Tiny datasets written by hand, byte for byte what LeRobot and the original ACT would leave."""

import io
import json
from dataclasses import dataclass, field
from fractions import Fraction

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

JOINTS = ("pan.pos", "lift.pos", "gripper.pos")
FPS = 10
SIZE = (32, 48)
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass
class Demo:
    """What one episode should read back as: numbers, and the pictures before compression."""

    state: np.ndarray
    action: np.ndarray
    cube: np.ndarray
    pictures: dict[str, np.ndarray]
    region: str = "train"
    task: str = "lift the cube"
    length: int = field(init=False)

    def __post_init__(self):
        self.length = len(self.action)


def demos(lengths=(7, 5, 9), cameras=("top", "wrist"), size=SIZE, seed=0):
    """Episodes whose every picture has a brightness of its own, to tell the frames apart."""
    rng = np.random.default_rng(seed)
    made, brightness = [], 0
    for length in lengths:
        pictures = {}
        for camera in cameras:
            noise = rng.integers(-8, 9, (length, 3, *size))
            level = 20 + 8 * ((np.arange(length) + brightness) % 25)[:, None, None, None]
            tint = np.array([0, 10, 20] if camera == "top" else [20, 0, 10])[None, :, None, None]
            pictures[f"observation.images.{camera}"] = (level + tint + noise).astype(np.uint8)
        brightness += length
        made.append(
            Demo(
                rng.normal(size=(length, 3)).astype(np.float32),
                rng.normal(size=(length, 3)).astype(np.float32),
                np.repeat(rng.normal(size=(1, 4)), length, axis=0).astype(np.float32),
                pictures,
            )
        )
    return made


def info(version, *, cameras, dtype="video", size=SIZE):
    data, video = (V3_DATA, V3_VIDEO) if version.startswith("v3") else (V2_DATA, V2_VIDEO)
    vector = {"dtype": "float32", "shape": [3], "names": list(JOINTS)}
    if version.startswith("v2"):
        vector["names"] = {"motors": list(JOINTS)}
    features = {"observation.state": vector, "action": vector}
    features["label.cube"] = {"dtype": "float32", "shape": [4], "names": ["x", "y", "z", "yaw"]}
    for key in cameras:
        names = ["height", "width", "channels"]
        features[key] = {"dtype": dtype, "shape": [*size, 3], "names": names}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return {
        "codebase_version": version,
        "robot_type": "so101",
        "chunks_size": 1000,
        "fps": FPS,
        "data_path": data,
        "video_path": video if dtype == "video" else None,
        "features": features,
    }


def write_video(path, pictures, *, gop=2, b_frames=0, fps=FPS, codec="libx264", options=None):
    """Pictures `frame 3 h w` as mp4; every frame's time is exact on the container's clock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec,
            rate=fps,
            options={"g": str(gop), "bf": str(b_frames), "crf": "10"} | (options or {}),
        )
        stream.height, stream.width = pictures.shape[2:]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps * 512)
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decoded(path):
    """All frames of a video the plain way, `frame 3 h w`: the reference for our reader."""
    with av.open(str(path)) as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    return np.stack(frames).transpose(0, 3, 1, 2)


def png(picture):
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(stream, "PNG")
    return stream.getvalue()


def table(demo, index, first_row, *, image_keys=()):
    n = demo.length
    columns = {
        "observation.state": fixed(demo.state),
        "action": fixed(demo.action),
        "label.cube": fixed(demo.cube),
        "timestamp": pa.array((np.arange(n) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(n)),
        "episode_index": pa.array(np.full(n, index)),
        "index": pa.array(np.arange(n) + first_row),
        "task_index": pa.array(np.zeros(n, dtype=np.int64)),
    }
    for key in image_keys:
        rows = [
            {"bytes": png(p), "path": f"frame-{i:06d}.png"}
            for i, p in enumerate(demo.pictures[key])
        ]
        columns[key] = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(columns)


def fixed(values):
    flat = pa.array(values.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_table(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_v3(root, episodes, *, per_file=2, image_mode=False, **video):
    """A v3.0 folder with `per_file` episodes in every table and every mp4."""
    cameras = list(episodes[0].pictures)
    size = episodes[0].pictures[cameras[0]].shape[2:] if cameras else SIZE
    described = info("v3.0", cameras=cameras, dtype="image" if image_mode else "video", size=size)
    write_json(root / "meta/info.json", described)
    rows, first = [], 0
    for file_index, start in enumerate(range(0, len(episodes), per_file)):
        group = episodes[start : start + per_file]
        tables, seconds = [], 0.0
        for index, demo in enumerate(group, start):
            keys = cameras if image_mode else ()
            tables.append(table(demo, index, first, image_keys=keys))
            row = {
                "episode_index": index,
                "tasks": [demo.task],
                "length": demo.length,
                "data/chunk_index": 0,
                "data/file_index": file_index,
                "dataset_from_index": first,
                "dataset_to_index": first + demo.length,
                "region": demo.region,
                "stats/action/mean": [0.0, 0.0, 0.0],
            }
            for key in () if image_mode else cameras:
                row |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": file_index,
                    f"videos/{key}/from_timestamp": seconds,
                    f"videos/{key}/to_timestamp": seconds + demo.length / FPS,
                }
            rows.append(row)
            seconds += demo.length / FPS
            first += demo.length
        write_table(
            root / f"data/chunk-000/file-{file_index:03d}.parquet", pa.concat_tables(tables)
        )
        for key in () if image_mode else cameras:
            pictures = np.concatenate([demo.pictures[key] for demo in group])
            write_video(v3_video(root, key, file_index), pictures, **video)
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    return root


def v3_video(root, key, file_index=0):
    return root / f"videos/{key}/chunk-000/file-{file_index:03d}.mp4"


def write_v2(root, episodes, *, version="v2.1", **video):
    """A v2.1 folder: one table and one mp4 per camera for every episode."""
    cameras = list(episodes[0].pictures)
    write_json(root / "meta/info.json", info(version, cameras=cameras))
    lines, first = [], 0
    for index, demo in enumerate(episodes):
        lines.append(
            {
                "episode_index": index,
                "tasks": [demo.task],
                "length": demo.length,
                "region": demo.region,
            }
        )
        write_table(root / f"data/chunk-000/episode_{index:06d}.parquet", table(demo, index, first))
        for key in cameras:
            path = root / f"videos/chunk-000/{key}/episode_{index:06d}.mp4"
            write_video(path, demo.pictures[key], **video)
        first += demo.length
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def edit_info(root, change):
    """Applies `change` to the dictionary of info.json."""
    path = root / "meta/info.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_episodes(root, change):
    """Applies `change` to the list of v3 episode rows."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    write_table(path, pa.Table.from_pylist(rows))


def write_hdf5(path, demo, *, sim=True, compress=False, base_action=None):
    """An episode as act and (with `compress`, `base_action`) act-plus-plus record it."""
    with h5py.File(path, "w") as file:
        if sim is not None:
            file.attrs["sim"] = sim
        if compress:
            file.attrs["compress"] = True
        file["action"] = demo.action.astype(np.float32)
        file["observations/qpos"] = demo.state.astype(np.float64)
        file["observations/qvel"] = np.zeros_like(demo.state)
        if base_action is not None:
            file["base_action"] = base_action
        for key, pictures in demo.pictures.items():
            name = f"observations/images/{key.removeprefix('observation.images.')}"
            rows = pictures.transpose(0, 2, 3, 1)
            if compress:
                files = [jpeg(row) for row in rows]
                padded = np.zeros((len(files), max(map(len, files)) + 7), np.uint8)
                for row, content in zip(padded, files, strict=True):
                    row[: len(content)] = np.frombuffer(content, np.uint8)
                rows = padded
            file[name] = rows
    return path


def jpeg(array):
    """What `cv2.imencode` does with an array: it takes the channels for blue, green, red."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[:, :, ::-1])).save(stream, "JPEG", quality=95)
    return stream.getvalue()
