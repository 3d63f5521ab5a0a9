"""The microscope and the scalpel for ACT robot policies.

from actlens import HookedACT
model = HookedACT.from_pretrained("so101-pick-cube")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from actlens.cache import ActivationCache as ActivationCache
from actlens.config import ACTConfig as ACTConfig
from actlens.config import Camera as Camera
from actlens.errors import ActlensError as ActlensError
from actlens.hooks import HookPoint as HookPoint
from actlens.hooks import Receipt as Receipt
from actlens.model.act import HookedACT as HookedACT
from actlens.scene import Scene as Scene
from actlens.scene import ScenePair as ScenePair
from actlens.scene import stack as stack
from actlens.tokens import TokenMap as TokenMap

if TYPE_CHECKING:
    from actlens.attribution import attribute_pairs as attribute_pairs
    from actlens.patching import Direction as Direction
    from actlens.patching import PatchingResult as PatchingResult
    from actlens.patching import patch_pairs as patch_pairs
    from actlens.scenes.bundled import load_pairs as load_pairs
    from actlens.scenes.dataset import open_dataset as open_dataset
    from actlens.store import open_activations as open_activations
    from actlens.store import write_activations as write_activations

__version__ = "0.1.0"

# Imported when first used: pandas, scipy and the dataset readers take longer than the rest.
_LAZY = {
    "Direction": "actlens.patching",
    "PatchingResult": "actlens.patching",
    "patch_pairs": "actlens.patching",
    "load_pairs": "actlens.scenes.bundled",
    "open_dataset": "actlens.scenes.dataset",
    "attribute_pairs": "actlens.attribution",
    "open_activations": "actlens.store",
    "write_activations": "actlens.store",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'actlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
