"""Pages that are printed from the code say what the code says now."""

from pathlib import Path

from actlens.config import ACTConfig, Camera
from actlens.model.act import HookedACT
from actlens.report.hook_table import hook_table

PAGE = Path(__file__).parents[1] / "docs/reference/hook-points.md"


def expected_table():
    config = ACTConfig(
        cameras=(Camera("observation.images.top", 64, 64),), action_dim=6, state_dim=6,
        env_state_dim=3, chunk=4, n_action_steps=4, d_model=16, n_heads=2, d_mlp=16,
        n_encoder_layers=2, n_vae_encoder_layers=2,
    )  # fmt: skip
    return hook_table(HookedACT(config)).replace("embed.top.", "embed.{camera}.")


def test_the_hook_point_page_is_the_models_own_table():
    assert expected_table() in PAGE.read_text(), "paste the table that expected_table() returns"
