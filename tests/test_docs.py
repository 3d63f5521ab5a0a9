"""Pages that are printed from the code say what the code says now."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import actlens
from actlens.config import ACTConfig, Camera
from actlens.model.act import HookedACT
from actlens.report.hook_table import hook_table

PAGE = Path(__file__).parents[1] / "docs/reference/hook-points.md"
API = PAGE.with_name("api.md")


def expected_table():
    config = ACTConfig(
        cameras=(Camera("observation.images.top", 64, 64),), action_dim=6, state_dim=6,
        env_state_dim=3, chunk=4, n_action_steps=4, d_model=16, n_heads=2, d_mlp=16,
        n_encoder_layers=2, n_vae_encoder_layers=2,
    )  # fmt: skip
    return hook_table(HookedACT(config)).replace("embed.top.", "embed.{camera}.")


def test_the_hook_point_page_is_the_models_own_table():
    assert expected_table() in PAGE.read_text(), "paste the table that expected_table() returns"


INTERNAL = {
    # Behind other calls, or commands of their own.
    "__main__", "allocator", "cache", "matmul", "model", "normalization", "report", "scene", "text",
    "tokens", "train", "training_data",
}  # fmt: skip


def test_the_reference_lists_every_public_package():
    documented = re.findall(r"^::: actlens\.(\w+)", API.read_text(), re.M)
    packages = {module.name for module in pkgutil.iter_modules(actlens.__path__)}
    assert packages - set(documented) == INTERNAL & packages


def test_what_the_reference_lists_is_documented():
    for name in re.findall(r"^::: (\S+)", API.read_text(), re.M):
        owner, _, attribute = name.rpartition(".")
        try:
            thing = import_module(name)
        except ModuleNotFoundError:
            thing = getattr(import_module(owner), attribute)
        assert thing.__doc__, name
