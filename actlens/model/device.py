"""Whether this machine can compute where it is asked to."""

import torch

from actlens.errors import DeviceError
from actlens.text import clean_text


def usable_device(device: torch.device | str) -> torch.device:
    """The device, after a first tensor was made on it.

    Raises:
        DeviceError: if there is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        raise DeviceError(
            f"{str(device)!r} is no device that can be used here "
            f"({clean_text(error, limit=80)}); 'cpu' always can."
        ) from error
