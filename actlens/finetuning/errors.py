"""What cannot be fine-tuned."""

from actlens.errors import ActlensError


class FinetuningError(ActlensError, ValueError):
    """A part, an update or a set of scenes that cannot be trained, or trained on."""
