"""Every error actlens raises on purpose: what is wrong, where, and how to mend it."""


class ActlensError(Exception):
    """The base of all errors that actlens raises on purpose.

    The message is one or two sentences: what was given (file, key or shape), what would have been
    right, and how to get there.
    """


class ConfigError(ActlensError, ValueError):
    """The numbers of an architecture contradict each other, or ask for something ACT cannot do."""


class CheckpointError(ActlensError):
    """A checkpoint's files are missing, damaged, foreign, or disagree with each other."""


class UnsafeFileError(CheckpointError):
    """A file would run code or leave its folder when read; nothing of it was executed."""


class SceneError(ActlensError, ValueError):
    """An observation, a scene or a dataset does not fit the policy or its own description."""


class DeviceError(ActlensError, RuntimeError):
    """This machine cannot compute on the requested device."""


class HookNameError(ActlensError, KeyError):
    """No hook point, token or axis has the requested name."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message, quotes and all.
        return str(self.args[0]) if self.args else ""


class HookNeverFired(ActlensError, RuntimeError):
    """The model ran, and a hook that was attached for this run was never reached."""


class HookReturnError(ActlensError, ValueError):
    """A hook returned something that cannot stand in for the activation it was given."""


class InterventionError(ActlensError, ValueError):
    """An intervention does not fit the network, its donors, or its own description."""
