"""The error of the activation store."""

from actlens.errors import ActlensError


class StoreError(ActlensError):
    """A folder of stored activations is damaged or foreign, or does not fit what was asked."""
