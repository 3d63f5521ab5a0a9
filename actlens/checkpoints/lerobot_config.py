"""LeRobot's `config.json` to and from `ACTConfig`, for every release from 2024 to 0.6.1."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from actlens.checkpoints.files import did_you_mean, listed, quoted, read_json
from actlens.config import (
    ACTION_KEY,
    ENV_STATE_KEY,
    STATE_KEY,
    ACTConfig,
    Activation,
    Backbone,
    Camera,
)
from actlens.errors import CheckpointError, ConfigError
from actlens.normalization import NormalizationMode

CONFIG_FILE = "config.json"


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


@dataclass(frozen=True)
class LeRobotConfig:
    """A `config.json`, read: the architecture, its features, and the file itself."""

    path: Path
    config: ACTConfig
    features: tuple[Feature, ...]
    raw: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def before_2025(self) -> bool:
        """Whether it is of the first layout, with `input_shapes` and without `type`."""
        return "input_shapes" in self.raw


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_bool(value: object) -> bool:
    # LeRobot declares `replace_final_stride_with_dilation` an int.
    return isinstance(value, bool) or (_is_int(value) and value in (0, 1))


@dataclass(frozen=True)
class _Field:
    """One architecture field: its name in `ACTConfig`, and what it may be."""

    name: str
    accepts: Callable[[object], bool]
    wanted: str
    convert: Callable[[Any], Any]


def _int(name: str) -> _Field:
    return _Field(name, _is_int, "a whole number", int)


def _bool(name: str) -> _Field:
    return _Field(name, _is_bool, "true or false", bool)


def _choice(name: str, options: type[StrEnum]) -> _Field:
    wanted = f"one of {', '.join(options)}"
    return _Field(name, lambda value: value in list(options), wanted, options)


_ARCHITECTURE = {
    "chunk_size": _int("chunk"),
    "n_action_steps": _int("n_action_steps"),
    "vision_backbone": _choice("backbone", Backbone),
    "replace_final_stride_with_dilation": _bool("dilation"),
    "pre_norm": _bool("pre_norm"),
    "dim_model": _int("d_model"),
    "n_heads": _int("n_heads"),
    "dim_feedforward": _int("d_mlp"),
    "feedforward_activation": _choice("activation", Activation),
    "n_encoder_layers": _int("n_encoder_layers"),
    "n_decoder_layers": _int("n_decoder_layers"),
    "use_vae": _bool("use_vae"),
    "latent_dim": _int("latent_dim"),
    "n_vae_encoder_layers": _int("n_vae_encoder_layers"),
    "temporal_ensemble_coeff": _Field(
        "temporal_ensemble_coeff",
        lambda value: value is None or _is_float(value),
        "a number or null",
        lambda value: None if value is None else float(value),
    ),
    "dropout": _Field("dropout", _is_float, "a number", float),
}

_FEATURES = {"input_features", "output_features", "normalization_mapping"}
_FEATURES_BEFORE_2025 = {
    "input_shapes",
    "output_shapes",
    "input_normalization_modes",
    "output_normalization_modes",
}

# What LeRobot 0.1 to 0.6.1 also writes into an ACT's config.json: it says how the policy was
# trained and published, and changes nothing about what the network computes.
_BOOKKEEPING = {
    "type",
    "n_obs_steps",
    "pretrained_backbone_weights",
    "kl_weight",
    "optimizer_lr",
    "optimizer_weight_decay",
    "optimizer_lr_backbone",
    "device",
    "use_amp",
    "use_peft",
    "push_to_hub",
    "repo_id",
    "private",
    "tags",
    "license",
    "pretrained_path",
    "pretrained_revision",
    "temporal_ensemble_momentum",
    "use_temporal_aggregation",
}
_OBSOLETE = _FEATURES_BEFORE_2025 | {"temporal_ensemble_momentum", "use_temporal_aggregation"}

# Written by some releases between 0.4.0 and 0.6.1 only, which others refuse: saved if they say
# something.
_NEW_FIELDS = {"use_peft": False, "pretrained_path": None, "pretrained_revision": None}

KNOWN_FIELDS = frozenset(_ARCHITECTURE.keys() | _FEATURES | _FEATURES_BEFORE_2025 | _BOOKKEEPING)


def read_lerobot_config(folder: Path) -> LeRobotConfig:
    """The architecture and the features that a LeRobot `config.json` declares.

    Fields that LeRobot would fill with a default are filled with the same default, and noted.

    Raises:
        CheckpointError: naming the file and the field, if it is not an ACT's, has a field that no
            release of LeRobot writes, or a value that cannot work.
    """
    path = folder / CONFIG_FILE
    raw = read_json(path)
    _refuse_foreign(path, raw)
    notes = []
    numbers: dict[str, Any] = {}
    for field_name, field in _ARCHITECTURE.items():
        if field_name not in raw:
            default = ACTConfig.__dataclass_fields__[field.name].default
            notes.append(f"{CONFIG_FILE} has no {field_name}: LeRobot's default {default} is used.")
            continue
        value = raw[field_name]
        if field_name == "feedforward_activation" and value == "glu":
            raise CheckpointError(
                f"{path}: feedforward_activation 'glu' halves the width that the next layer "
                "expects, so no such ACT can run, in LeRobot neither; use 'relu' or 'gelu'."
            )
        if not field.accepts(value):
            raise CheckpointError(
                f"{path}: {field_name} must be {field.wanted}, found {quoted(value)}."
            )
        numbers[field.name] = field.convert(value)
    features, more_notes = _read_features(path, raw)
    by_kind: dict[FeatureKind, list[Feature]] = {kind: [] for kind in FeatureKind}
    for feature in features:
        by_kind[feature.kind].append(feature)
    state, env = (by_kind[kind] for kind in (FeatureKind.STATE, FeatureKind.ENV))
    try:
        config = ACTConfig(
            cameras=tuple(
                Camera(feature.key, feature.shape[1], feature.shape[2])
                for feature in by_kind[FeatureKind.VISUAL]
            ),
            action_dim=by_kind[FeatureKind.ACTION][0].shape[0],
            state_dim=state[0].shape[0] if state else None,
            env_state_dim=env[0].shape[0] if env else None,
            env_state_key=env[0].key if env else ENV_STATE_KEY,
            **numbers,
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return LeRobotConfig(path, config, features, raw, (*notes, *more_notes))


def _refuse_foreign(path: Path, raw: Mapping[str, Any]) -> None:
    """Refuse the configurations of other policies and of training features ACT has no place for."""
    if raw.get("type", "act") != "act":
        raise CheckpointError(
            f"{path}: type is {quoted(raw['type'])}; actlens reads LeRobot's ACT policies ('act')."
        )
    for name in raw:
        if name not in KNOWN_FIELDS:
            raise CheckpointError(
                f"{path}: unknown config field {quoted(name)}: no ACT of LeRobot 0.1 to 0.6.1 has "
                f"it.{did_you_mean(name, KNOWN_FIELDS)} If a fork wrote it and it changes nothing "
                "about the network, remove it."
            )
    if raw.get("use_peft"):
        raise CheckpointError(
            f"{path}: use_peft is true, so the weights are adapters beside a base policy; merge "
            "them first (peft's `merge_and_unload`) and save the policy without use_peft."
        )
    if raw.get("n_obs_steps", 1) != 1:
        raise CheckpointError(
            f"{path}: n_obs_steps must be 1, found {quoted(raw['n_obs_steps'])}; ACT reads one "
            "observation."
        )
    if raw.get("temporal_ensemble_momentum") is not None or raw.get("use_temporal_aggregation"):
        raise CheckpointError(
            f"{path}: temporal_ensemble_momentum (LeRobot before July 2024) averaged actions by "
            "another formula; set it to null and set temporal_ensemble_coeff instead."
        )


def _read_features(path: Path, raw: Mapping[str, Any]) -> tuple[tuple[Feature, ...], list[str]]:
    """The features that ACT uses, in the order of the file, and notes on the others."""
    old, new = _FEATURES_BEFORE_2025 & raw.keys(), _FEATURES & raw.keys()
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
    if not isinstance(shape, list) or not all(_is_int(n) and n > 0 for n in shape):
        raise CheckpointError(
            f"{path}: {where} must have a shape of positive whole numbers, found {quoted(shape)}."
        )
    return tuple(shape)


def to_lerobot_json(
    config: ACTConfig, modes: Mapping[FeatureKind, NormalizationMode], raw: Mapping[str, Any]
) -> dict[str, Any]:
    """A `config.json` that LeRobot 0.4 to 0.6 reads.

    Args:
        config: the architecture and the features.
        modes: how each kind of feature is normalised.
        raw: the `config.json` that the policy came with, or nothing; its training and publishing
            fields and the features that ACT never uses are carried over.
    """
    carried = {
        name: value
        for name, value in raw.items()
        if name not in _OBSOLETE and not (name in _NEW_FIELDS and value == _NEW_FIELDS[name])
    }
    inputs, outputs = _feature_tables(config)
    written = {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": inputs | _unused(raw, "input_features", inputs),
        "output_features": outputs | _unused(raw, "output_features", outputs),
        "normalization_mapping": _mapping(modes, raw.get("normalization_mapping", {})),
    }
    for field_name, field in _ARCHITECTURE.items():
        written[field_name] = getattr(config, field.name)
    # Without this, LeRobot would first download the backbone it started the training from.
    carried.setdefault("pretrained_backbone_weights", None)
    return carried | written


def _mapping(
    modes: Mapping[FeatureKind, NormalizationMode], original: Mapping[str, str]
) -> dict[str, str]:
    """`normalization_mapping`; a kind it does not name has the mode IDENTITY."""
    said = {
        kind.value: mode.value
        for kind, mode in modes.items()
        if mode is not NormalizationMode.IDENTITY or kind in original
    }
    return {**original, **said}


def _feature_tables(config: ACTConfig) -> tuple[dict[str, Any], dict[str, Any]]:
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


def _unused(raw: Mapping[str, Any], section: str, used: Mapping[str, Any]) -> dict[str, Any]:
    """The features of the original file that ACT never used, so that a copy declares them too."""
    network = {FeatureKind.VISUAL, FeatureKind.ENV}
    return {
        key: entry
        for key, entry in raw.get(section, {}).items()
        if key not in used and entry["type"] not in network
    }
