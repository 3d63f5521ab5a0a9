"""LeRobot's normalisation since 0.4: two processor files and the statistics that they name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actlens.checkpoints.files import inside, read_json
from actlens.checkpoints.lerobot_features import Feature, FeatureKind
from actlens.checkpoints.lerobot_statistics import LeRobotNormalization, Statistics, to_affine
from actlens.checkpoints.weights import read_header, read_tensors
from actlens.config import ACTION_KEY
from actlens.errors import CheckpointError, UnsafeFileError
from actlens.normalization import Affine, NormalizationMode
from actlens.text import did_you_mean, listed, quoted

PREPROCESSOR_FILE = "policy_preprocessor.json"
POSTPROCESSOR_FILE = "policy_postprocessor.json"
NORMALIZER = "normalizer_processor"
UNNORMALIZER = "unnormalizer_processor"
RENAME = "rename_observations_processor"
TO_BATCH = "to_batch_processor"
DEVICE = "device_processor"
_STEPS = {
    PREPROCESSOR_FILE: (RENAME, TO_BATCH, DEVICE, NORMALIZER),
    POSTPROCESSOR_FILE: (UNNORMALIZER, DEVICE),
}

# Statistics are a few numbers by feature.
_STATISTICS_LIMIT = 2**22


def read_processors(folder: Path, features: tuple[Feature, ...]) -> LeRobotNormalization:
    """The normalisation of LeRobot 0.4 to 0.6: two JSON files and the statistics they name.

    Steps are found by their registry name, wherever they stand. Only LeRobot's own steps for ACT
    are known; a class path is never imported.

    Raises:
        UnsafeFileError: if a step names a class, or a file outside the folder.
        CheckpointError: if a file is missing or damaged, a step is unknown, or a feature of the
            policy would pass un-normalised although its mode says otherwise.
    """
    before = _read_pipeline(folder, PREPROCESSOR_FILE)
    after = _read_pipeline(folder, POSTPROCESSOR_FILE)
    normalizer = _read_normalizer(folder, PREPROCESSOR_FILE, before[NORMALIZER])
    unnormalizer = _read_normalizer(folder, POSTPROCESSOR_FILE, after[UNNORMALIZER])
    if normalizer.eps != unnormalizer.eps:
        raise CheckpointError(
            f"{folder}: {PREPROCESSOR_FILE} has eps {normalizer.eps:g} and {POSTPROCESSOR_FILE} "
            f"has {unnormalizer.eps:g}; make them equal."
        )
    affines, problems, notes = {}, [], []
    for feature in features:
        step = unnormalizer if feature.kind is FeatureKind.ACTION else normalizer
        try:
            affines[feature.key] = step.affine(feature)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if affines[feature.key].mode is not feature.mode:
            notes.append(
                f"{quoted(feature.key)}: config.json says {feature.mode}, {step.path.name} says "
                f"{affines[feature.key].mode}; LeRobot obeys the latter, and so does actlens."
            )
    problems += _contradictions(normalizer, unnormalizer, affines)
    if problems:
        raise CheckpointError("\n".join(problems))
    renames = _read_renames(folder / PREPROCESSOR_FILE, before)
    if renames:
        notes.append(f"{PREPROCESSOR_FILE} renames observations: {listed(renames.items())}.")
    for path, steps in ((PREPROCESSOR_FILE, before), (POSTPROCESSOR_FILE, after)):
        cast = steps.get(DEVICE, {}).get("float_dtype")
        if cast not in (None, "float32", "float"):
            notes.append(f"{path} casts to {quoted(cast)} in LeRobot; actlens does not.")
    statistics = {**unnormalizer.statistics, **normalizer.statistics}
    return LeRobotNormalization(affines, statistics, normalizer.eps, renames, tuple(notes))


@dataclass(frozen=True)
class _Step:
    """A normaliser step: its settings from JSON and its statistics from safetensors."""

    path: Path
    state_path: Path | None
    eps: float
    kinds: Mapping[str, FeatureKind]
    modes: Mapping[FeatureKind, NormalizationMode]
    only: frozenset[str] | None
    statistics: Statistics

    def affine(self, feature: Feature) -> Affine:
        """The map of one feature; refuses what LeRobot would silently pass un-normalised."""
        what = f"{self.state_path or self.path}: {quoted(feature.key)}"
        if feature.key not in self.kinds:
            if feature.mode is NormalizationMode.IDENTITY:
                return Affine.from_stats(feature.mode, {}, eps=self.eps, what=what)
            raise CheckpointError(
                f"{self.path}: has no feature {quoted(feature.key)}, so LeRobot passes it "
                f"un-normalised although config.json says {feature.mode}; it has "
                f"{listed(self.kinds)}.{_lookalike(feature.key, self.kinds, self.path)}"
            )
        mode = self.modes.get(self.kinds[feature.key], NormalizationMode.IDENTITY)
        is_observation = feature.kind is not FeatureKind.ACTION
        if self.only is not None and is_observation and feature.key not in self.only:
            raise CheckpointError(
                f"{self.path}: normalize_observation_keys leaves out {quoted(feature.key)}, so "
                "LeRobot passes it un-normalised; add it, or set the mode to IDENTITY."
            )
        statistics = self.statistics.get(feature.key, {})
        if not statistics and mode is not NormalizationMode.IDENTITY:
            raise CheckpointError(
                f"{what} has no statistics, so LeRobot passes it un-normalised although its mode "
                f"is {mode}; statistics exist for {listed(self.statistics) or 'nothing'}."
                f"{_lookalike(feature.key, self.statistics, self.state_path or self.path)}"
            )
        return to_affine(feature, mode, statistics, eps=self.eps, what=what)


def _lookalike(key: str, names: Mapping[str, Any], path: Path) -> str:
    """How to mend a name that LeRobot's migration script has changed: it writes `_` as `.`."""
    for name in names:
        if name != key and name.replace("_", ".") == key.replace("_", "."):
            return (
                f" {quoted(name)} is the same name as LeRobot's migration script mangles it: "
                f"rename it to {quoted(key)} in {path.name} (and in the other processor file)."
            )
    return did_you_mean(key, names, most=1)


def _contradictions(
    normalizer: _Step, unnormalizer: _Step, affines: Mapping[str, Affine]
) -> list[str]:
    """Action statistics that differ between the files: trained on one, undone with the other."""
    mine = normalizer.statistics.get(ACTION_KEY, {})
    undone = unnormalizer.statistics.get(ACTION_KEY, {})
    if ACTION_KEY not in affines or affines[ACTION_KEY].mode is NormalizationMode.IDENTITY:
        return []
    return [
        f"{unnormalizer.state_path}: {name} of {ACTION_KEY!r} differs from the preprocessor's, so "
        "actions would be undone with other statistics than they were trained with; copy the right "
        "ones into both files."
        for name in sorted(mine.keys() & undone.keys())
        if not torch.equal(mine[name], undone[name])
    ]


def _read_pipeline(folder: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """The settings of each step by registry name, and its `state_file` beside them."""
    path = folder / name
    steps = read_json(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{path}: is not a LeRobot processor: it must hold a list of steps.")
    found: dict[str, Mapping[str, Any]] = {}
    for step in steps:
        registry_name = _registry_name(path, step, _STEPS[name])
        if registry_name in found:
            raise CheckpointError(f"{path}: has the step {registry_name!r} twice.")
        settings = step.get("config", {})
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path}: the settings of {registry_name!r} must be an object.")
        found[registry_name] = {**settings, "state_file": step.get("state_file")}
    for needed in (NORMALIZER, UNNORMALIZER):
        if needed in _STEPS[name] and needed not in found:
            raise CheckpointError(
                f"{path}: has no step {needed!r}, so LeRobot would not normalise at all; take the "
                "file from the training run."
            )
    order = list(found)
    if (
        RENAME in found
        and order.index(RENAME) > order.index(NORMALIZER)
        and found[RENAME].get("rename_map")
    ):
        raise CheckpointError(f"{path}: renames observations after it has normalised them.")
    return found


def _registry_name(path: Path, step: Mapping[str, Any], known: tuple[str, ...]) -> str:
    """The step's name, from the fixed list; LeRobot would import any class that is named here."""
    if "registry_name" not in step:
        if "class" in step:
            raise UnsafeFileError(
                f"{path}: refused a step that names the class {quoted(step['class'])}: reading a "
                f"checkpoint never imports code. Known steps: {', '.join(known)}."
            )
        raise CheckpointError(f"{path}: a step has no registry_name.")
    name = step["registry_name"]
    if name not in known:
        raise CheckpointError(
            f"{path}: unknown step {quoted(name)}; the steps of an ACT are {', '.join(known)}, and "
            "anything else would change what the policy sees without actlens doing the same."
        )
    return name


def _read_renames(path: Path, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    renames = steps.get(RENAME, {}).get("rename_map", {})
    if not isinstance(renames, dict) or not all(isinstance(new, str) for new in renames.values()):
        raise CheckpointError(f"{path}: rename_map must map names to names.")
    return renames


def _read_normalizer(folder: Path, name: str, settings: Mapping[str, Any]) -> _Step:
    path = folder / name
    eps = settings.get("eps", 1e-8)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise CheckpointError(f"{path}: eps must be a number in [0, 1), found {quoted(eps)}.")
    only = settings.get("normalize_observation_keys")
    if only is not None and not (isinstance(only, list) and all(isinstance(k, str) for k in only)):
        raise CheckpointError(f"{path}: normalize_observation_keys must be a list of names.")
    state_file = settings["state_file"]
    state_path = None if state_file is None else inside(folder, state_file, named_by=path)
    return _Step(
        path=path,
        state_path=state_path,
        eps=float(eps),
        kinds=_read_kinds(path, settings),
        modes=_read_modes(path, settings),
        only=None if only is None else frozenset(only),
        statistics={} if state_path is None else _read_statistics(state_path),
    )


def _read_kinds(path: Path, settings: Mapping[str, Any]) -> dict[str, FeatureKind]:
    features = settings.get("features", {})
    if not isinstance(features, dict):
        raise CheckpointError(f"{path}: features must be a table, found {type(features).__name__}.")
    kinds = {}
    for key, entry in features.items():
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind not in list(FeatureKind):
            raise CheckpointError(f"{path}: feature {quoted(key)} has type {quoted(kind)}.")
        kinds[key] = FeatureKind(kind)
    return kinds


def _read_modes(path: Path, settings: Mapping[str, Any]) -> dict[FeatureKind, NormalizationMode]:
    norm_map = settings.get("norm_map", {})
    if not isinstance(norm_map, dict):
        raise CheckpointError(f"{path}: norm_map must be a table, found {type(norm_map).__name__}.")
    modes = {}
    for kind, mode in norm_map.items():
        if kind not in list(FeatureKind) or mode not in list(NormalizationMode):
            raise CheckpointError(
                f"{path}: norm_map has {quoted(kind)}: {quoted(mode)}; kinds are "
                f"{', '.join(FeatureKind)} and modes {', '.join(NormalizationMode)}."
            )
        modes[FeatureKind(kind)] = NormalizationMode(mode)
    return modes


def _read_statistics(path: Path) -> Statistics:
    """`feature.statistic` -> tensor, by feature and statistic."""
    header = read_header(path)
    if sum(math.prod(shape) for shape in header.shapes.values()) > _STATISTICS_LIMIT:
        raise CheckpointError(f"{path}: holds far more numbers than statistics need.")
    statistics: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(header, header.shapes).items():
        key, _, statistic = name.rpartition(".")
        statistics.setdefault(key, {})[statistic] = tensor
    return statistics
