"""The inputs and outputs that a LeRobot `config.json` declares, in both of its layouts."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from actlens.config import ACTION_KEY, ENV_STATE_KEY, STATE_KEY, ACTConfig
from actlens.errors import CheckpointError
from actlens.normalization import NormalizationMode
from actlens.text import listed, quoted

FIELDS = {"input_features", "output_features", "normalization_mapping"}
FIELDS_BEFORE_2025 = {
    "input_shapes",
    "output_shapes",
    "input_normalization_modes",
    "output_normalization_modes",
}


class FeatureKind(StrEnum):
    """LeRobot's `FeatureType`: decides the normalisation and what the network does with it."""

    STATE = "STATE"
    VISUAL = "VISUAL"
    ENV = "ENV"
    ACTION = "ACTION"
    REWARD = "REWARD"
    LANGUAGE = "LANGUAGE"


@dataclass(frozen=True)
class Feature:
    """An input or output that the network reads or writes, and how `config.json` normalises it."""

    key: str
    kind: FeatureKind
    shape: tuple[int, ...]
    mode: NormalizationMode

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Images are normalised by channel, everything else by component."""
        return (self.shape[0], 1, 1) if self.kind is FeatureKind.VISUAL else self.shape


def read_features(path: Path, raw: Mapping[str, Any]) -> tuple[tuple[Feature, ...], list[str]]:
    """The features that ACT uses, in the order of the file, and notes on the others."""
    old, new = FIELDS_BEFORE_2025 & raw.keys(), FIELDS & raw.keys()
    if old and new:
        raise CheckpointError(
            f"{path}: has fields of two layouts, {listed(sorted(old))} and {listed(sorted(new))}."
        )
    declared = _features_before_2025(path, raw) if old else _features_since_2025(path, raw)
    used, notes = [], []
    for feature, is_input in declared:
        expected_key = {FeatureKind.STATE: STATE_KEY, FeatureKind.ACTION: ACTION_KEY}
        kinds = (
            (FeatureKind.STATE, FeatureKind.ENV, FeatureKind.VISUAL)
            if is_input
            else (FeatureKind.ACTION,)
        )
        if feature.kind in kinds and feature.key == expected_key.get(feature.kind, feature.key):
            _check_shape(path, feature)
            used.append(feature)
        else:
            notes.append(
                f"{quoted(feature.key)} ({feature.kind}) is declared, but ACT never uses it."
            )
    if not any(feature.kind is FeatureKind.ACTION for feature in used):
        raise CheckpointError(f"{path}: the outputs must hold an {ACTION_KEY!r} of type ACTION.")
    if len(environments := [f.key for f in used if f.kind is FeatureKind.ENV]) > 1:
        raise CheckpointError(
            f"{path}: declares several environment states ({listed(environments)}); ACT reads one."
        )
    return tuple(used), notes


def is_whole_number(value: object) -> bool:
    """Whether a JSON value is a whole number; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_shape(path: Path, feature: Feature) -> None:
    if feature.kind is not FeatureKind.VISUAL:
        if len(feature.shape) != 1:
            raise CheckpointError(
                f"{path}: {quoted(feature.key)} must have shape [n], found {list(feature.shape)}."
            )
        return
    if len(feature.shape) != 3 or feature.shape[0] != 3:
        hint = (
            " It looks channel-last: write [3, height, width]."
            if len(feature.shape) == 3 and feature.shape[2] == 3
            else ""
        )
        raise CheckpointError(
            f"{path}: camera {quoted(feature.key)} must have shape [3, height, width], found "
            f"{list(feature.shape)}.{hint}"
        )


def _features_since_2025(path: Path, raw: Mapping[str, Any]) -> list[tuple[Feature, bool]]:
    """From `input_features`, `output_features` and `normalization_mapping` by feature type."""
    modes = {
        _kind(path, "normalization_mapping", name): _mode(path, "normalization_mapping", name, mode)
        for name, mode in _table(path, raw, "normalization_mapping").items()
    }
    features = []
    for section in ("input_features", "output_features"):
        for key, entry in _table(path, raw, section).items():
            where = f"{section}[{quoted(key)}]"
            if not isinstance(entry, dict) or not {"type", "shape"} <= entry.keys():
                raise CheckpointError(f"{path}: {where} must have a type and a shape.")
            kind = _kind(path, where, entry["type"])
            mode = modes.get(kind, NormalizationMode.IDENTITY)
            shape = _shape(path, where, entry["shape"])
            features.append((Feature(key, kind, shape, mode), section == "input_features"))
    return features


def _features_before_2025(path: Path, raw: Mapping[str, Any]) -> list[tuple[Feature, bool]]:
    """From `input_shapes`, `output_shapes` and the normalisation modes by feature key."""
    features = []
    for direction in ("input", "output"):
        shapes = _table(path, raw, f"{direction}_shapes")
        section = f"{direction}_normalization_modes"
        modes = _table(path, raw, section)
        if stray := modes.keys() - shapes.keys():
            raise CheckpointError(
                f"{path}: {section} names {listed(sorted(stray))}, which {direction}_shapes "
                "has not."
            )
        for key, shape in shapes.items():
            mode = (
                _mode(path, section, key, modes[key])
                if key in modes
                else NormalizationMode.IDENTITY
            )
            shape = _shape(path, f"{direction}_shapes[{quoted(key)}]", shape)
            features.append((Feature(key, _kind_of_key(key), shape, mode), direction == "input"))
    return features


def _kind_of_key(key: str) -> FeatureKind:
    """The kind that LeRobot inferred from a name before features had types."""
    if key.startswith("observation.image"):
        return FeatureKind.VISUAL
    if key == ENV_STATE_KEY:
        return FeatureKind.ENV
    return FeatureKind.ACTION if key == ACTION_KEY else FeatureKind.STATE


def _table(path: Path, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(table := raw.get(name), dict):
        found = "nothing" if name not in raw else type(table).__name__
        raise CheckpointError(f"{path}: {name} must be a table by feature, found {found}.")
    return table


def _kind(path: Path, where: str, name: object) -> FeatureKind:
    if name not in list(FeatureKind):
        raise CheckpointError(
            f"{path}: {where} has type {quoted(name)}; LeRobot's types are "
            f"{', '.join(FeatureKind)}."
        )
    return FeatureKind(name)


def _mode(path: Path, where: str, key: str, name: object) -> NormalizationMode:
    # The first layout wrote `mean_std`.
    upper = name.upper() if isinstance(name, str) else name
    if upper not in list(NormalizationMode):
        raise CheckpointError(
            f"{path}: {where} normalises {quoted(key)} by {quoted(name)}; actlens knows "
            f"{', '.join(NormalizationMode)}."
        )
    return NormalizationMode(upper)


def _shape(path: Path, where: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(is_whole_number(n) and n > 0 for n in shape):
        raise CheckpointError(
            f"{path}: {where} must have a shape of positive whole numbers, found {quoted(shape)}."
        )
    return tuple(shape)


def feature_tables(config: ACTConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """`input_features` and `output_features`; the cameras' order is the tokens' order."""
    inputs: dict[str, Any] = {}
    if config.state_dim is not None:
        inputs[STATE_KEY] = _entry(FeatureKind.STATE, config.state_dim)
    if config.env_state_dim is not None:
        inputs[config.env_state_key] = _entry(FeatureKind.ENV, config.env_state_dim)
    for camera in config.cameras:
        inputs[camera.key] = _entry(FeatureKind.VISUAL, 3, camera.height, camera.width)
    return inputs, {ACTION_KEY: _entry(FeatureKind.ACTION, config.action_dim)}


def _entry(kind: FeatureKind, *shape: int) -> dict[str, Any]:
    return {"type": kind.value, "shape": list(shape)}


def unused_features(
    raw: Mapping[str, Any], section: str, used: Mapping[str, Any]
) -> dict[str, Any]:
    """The features of the original file that ACT never used, so that a copy declares them too."""
    network = {FeatureKind.VISUAL, FeatureKind.ENV}
    return {
        key: entry
        for key, entry in raw.get(section, {}).items()
        if key not in used and entry["type"] not in network
    }
