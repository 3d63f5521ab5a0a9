"""What can go wrong with a run's folder and its workers."""

from actlens.errors import ActlensError


class RunError(ActlensError, RuntimeError):
    """A run's folder, its shards or its workers cannot do what was asked."""
