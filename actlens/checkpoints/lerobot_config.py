"""LeRobot's `config.json` to and from `ACTConfig`, for every release from 2024 to 0.6.1."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from actlens.checkpoints.files import read_json
from actlens.checkpoints.lerobot_features import (
    FIELDS,
    FIELDS_BEFORE_2025,
    Feature,
    FeatureKind,
    feature_tables,
    is_whole_number,
    read_features,
    unused_features,
)
from actlens.config import (
    ENV_STATE_KEY,
    ACTConfig,
    Activation,
    Backbone,
    Camera,
)
from actlens.errors import CheckpointError, ConfigError
from actlens.normalization import NormalizationMode
from actlens.text import did_you_mean, quoted

CONFIG_FILE = "config.json"


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


def _is_float(value: object) -> bool:
    return is_whole_number(value) or (isinstance(value, float) and math.isfinite(value))


def _is_bool(value: object) -> bool:
    # LeRobot declares `replace_final_stride_with_dilation` an int.
    return isinstance(value, bool) or (is_whole_number(value) and value in (0, 1))


@dataclass(frozen=True)
class _Field:
    """One architecture field: its name in `ACTConfig`, and what it may be."""

    name: str
    accepts: Callable[[object], bool]
    wanted: str
    convert: Callable[[Any], Any]


def _int(name: str) -> _Field:
    return _Field(name, is_whole_number, "a whole number", int)


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
_OBSOLETE = FIELDS_BEFORE_2025 | {"temporal_ensemble_momentum", "use_temporal_aggregation"}

# Written by some releases between 0.4.0 and 0.6.1 only, which others refuse: saved if they say
# something.
_NEW_FIELDS = {"use_peft": False, "pretrained_path": None, "pretrained_revision": None}

KNOWN_FIELDS = frozenset(_ARCHITECTURE.keys() | FIELDS | FIELDS_BEFORE_2025 | _BOOKKEEPING)


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
    features, more_notes = read_features(path, raw)
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
                f"it.{did_you_mean(name, KNOWN_FIELDS, most=1)} If a fork wrote it and it changes "
                "nothing about the network, remove it."
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
    inputs, outputs = feature_tables(config)
    written = {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": inputs | unused_features(raw, "input_features", inputs),
        "output_features": outputs | unused_features(raw, "output_features", outputs),
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
