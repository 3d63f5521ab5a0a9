"""What can go wrong when an answer is planted."""

from actlens.errors import ActlensError


class PlantError(ActlensError, ValueError):
    """What was asked for cannot be written into this policy's weights."""
