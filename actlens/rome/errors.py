"""What can go wrong with an edit of weights."""

from actlens.errors import ActlensError


class EditError(ActlensError, ValueError):
    """A request, key statistics or a weight edit do not fit the policy, or ask too much of it."""
