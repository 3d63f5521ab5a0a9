"""The policies that come with actlens, by name."""

from pathlib import Path

from actlens.checkpoints.lerobot_config import CONFIG_FILE
from actlens.errors import CheckpointError
from actlens.text import did_you_mean, quoted

_POLICIES = Path(__file__).parents[1] / "bundled" / "policies"


def bundled_names() -> tuple[str, ...]:
    """The names that `load_checkpoint` knows without any file or network, sorted."""
    return tuple(sorted(path.parent.name for path in _POLICIES.glob(f"*/{CONFIG_FILE}")))


def bundled_folder(name: str) -> Path:
    """The folder of a bundled policy.

    Raises:
        CheckpointError: if no policy of that name comes with actlens.
    """
    names = bundled_names()
    if name not in names:
        known = ", ".join(names) or "none"
        raise CheckpointError(
            f"{quoted(name)} is neither a path nor a bundled policy."
            f"{did_you_mean(name, names, most=1)} Bundled: {known}."
        )
    return _POLICIES / name
