"""The relay circuit, whose patching map is known exactly: `actlens.planted.relay`."""

from actlens.planted.relay import CONFIG, DENOISE_MAP, relay_pairs, relay_policy

__all__ = ["CONFIG", "DENOISE_MAP", "relay_pairs", "relay_policy"]
