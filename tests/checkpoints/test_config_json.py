"""`config.json`: what LeRobot writes is read, everything else is refused by file and field."""

import json
import string

import checkpoint_folders as folders
import pytest
from checkpoint_folders import ENV, STATE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlens.checkpoints.lerobot_config import KNOWN_FIELDS, read_lerobot_config
from actlens.config import ACTConfig
from actlens.errors import CheckpointError


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        read_lerobot_config(folder)
    assert "config.json" in str(caught.value)
    return str(caught.value)


def with_fields(tmp_path, **changes):
    folders.write_json(tmp_path / "config.json", folders.config_json(**changes))
    return tmp_path


@pytest.mark.parametrize(
    ("field", "hint"),
    [("dim_modell", "dim_model"), ("n_head", "n_heads"), ("compile_model", None), ("zzz", None)],
)
def test_an_unknown_field_is_named_with_what_it_may_mean(field, hint, tmp_path):
    message = refusal(with_fields(tmp_path, **{field: 1}))
    assert f"unknown config field {field!r}" in message
    assert hint is None or f"Did you mean {hint!r}?" in message


FIELDS_OF_2024 = """
    n_obs_steps chunk_size n_action_steps input_shapes output_shapes input_normalization_modes
    output_normalization_modes vision_backbone pretrained_backbone_weights
    replace_final_stride_with_dilation pre_norm dim_model n_heads dim_feedforward
    feedforward_activation n_encoder_layers n_decoder_layers use_vae latent_dim
    n_vae_encoder_layers temporal_ensemble_coeff temporal_ensemble_momentum dropout kl_weight
"""
FIELDS_OF_0_6_1 = """
    type n_obs_steps input_features output_features device use_amp use_peft push_to_hub repo_id
    private tags license pretrained_path pretrained_revision chunk_size n_action_steps
    normalization_mapping vision_backbone pretrained_backbone_weights
    replace_final_stride_with_dilation pre_norm dim_model n_heads dim_feedforward
    feedforward_activation n_encoder_layers n_decoder_layers use_vae latent_dim
    n_vae_encoder_layers temporal_ensemble_coeff dropout kl_weight optimizer_lr
    optimizer_weight_decay optimizer_lr_backbone
"""


@pytest.mark.parametrize("fields", [FIELDS_OF_2024, FIELDS_OF_0_6_1], ids=["2024", "0.6.1"])
def test_every_field_that_lerobot_writes_is_known(fields):
    assert set(fields.split()) <= KNOWN_FIELDS


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"feedforward_activation": "glu"}, "halves the width that the next layer expects"),
        ({"feedforward_activation": "tanh"}, "must be one of relu, gelu, found 'tanh'"),
        ({"vision_backbone": "vit_b_16"}, "must be one of resnet18, resnet34, resnet50"),
        ({"vision_backbone": "resnet18.__class__"}, "must be one of"),
        ({"dim_model": "512"}, "dim_model must be a whole number"),
        ({"dim_model": True}, "dim_model must be a whole number"),
        ({"dim_model": 8.0}, "dim_model must be a whole number"),
        ({"dim_model": 10**30}, "d_model must lie in"),
        ({"dim_model": 0}, "d_model must lie in"),
        ({"n_heads": 3}, "not a multiple of n_heads"),
        ({"n_encoder_layers": -1}, "n_encoder_layers must lie in"),
        ({"n_encoder_layers": 10**9}, "n_encoder_layers must lie in"),
        ({"pre_norm": "yes"}, "pre_norm must be true or false"),
        ({"dropout": None}, "dropout must be a number"),
        ({"temporal_ensemble_coeff": "0.01"}, "must be a number or null"),
        ({"temporal_ensemble_coeff": 0.01}, "n_action_steps must be 1"),
        ({"n_action_steps": 6}, "n_action_steps must lie in"),
        ({"replace_final_stride_with_dilation": True}, "dilation needs bottleneck blocks"),
        ({"type": "diffusion"}, "type is 'diffusion'"),
        ({"use_peft": True}, "merge them first"),
        ({"n_obs_steps": 2}, "n_obs_steps must be 1"),
        ({"temporal_ensemble_momentum": 0.9}, "averaged actions by another formula"),
        ({"normalization_mapping": {"STATE": "ZSCORE"}}, "by 'ZSCORE'"),
        ({"normalization_mapping": {"TACTILE": "MEAN_STD"}}, "type 'TACTILE'"),
        ({"normalization_mapping": None}, "normalization_mapping must be a table"),
        ({"input_features": []}, "input_features must be a table"),
        ({"input_features": {STATE: {"type": "STATE"}}}, "must have a type and a shape"),
        ({"input_features": {STATE: {"type": "STATE", "shape": [3, 1]}}}, "must have shape"),
        ({"input_features": {STATE: {"type": "STATE", "shape": [0]}}}, "positive whole numbers"),
        ({"input_features": {STATE: {"type": "STATE", "shape": "3"}}}, "positive whole numbers"),
        ({"input_features": {STATE: {"type": "STATE", "shape": [3]}}}, "at least one camera"),
        ({"output_features": {}}, "must hold an 'action'"),
        (
            {"input_features": {"observation.images.a": {"type": "VISUAL", "shape": [64, 96, 3]}}},
            "It looks channel-last",
        ),
        (
            {"input_features": {"observation.images.a": {"type": "VISUAL", "shape": [1, 64, 96]}}},
            "must have shape",
        ),
        (
            {
                "input_features": {
                    ENV: {"type": "ENV", "shape": [4]},
                    "observation.other": {"type": "ENV", "shape": [4]},
                }
            },
            "several environment states",
        ),
    ],
)
def test_values_that_cannot_work_are_refused(changes, match, tmp_path):
    assert match in refusal(with_fields(tmp_path, **changes))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"dropout": NaN}',
        b'{"dropout": 1e999}',
        b'{"dim_model": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b" " * (5 * 2**20),
    ],
    ids=range(11),
)
def test_what_is_not_a_configuration_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    refusal(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read" in refusal(tmp_path)


def test_a_mixture_of_two_layouts_is_refused(tmp_path):
    assert "fields of two layouts" in refusal(with_fields(tmp_path, input_shapes={}))


def test_control_characters_do_not_reach_the_message(tmp_path):
    message = refusal(with_fields(tmp_path, **{"\x1b]0;owned\x07\x9b2J": 1}))
    assert all(character.isprintable() for character in message)


def test_a_long_name_is_shortened(tmp_path):
    assert len(refusal(with_fields(tmp_path, **{"x" * 10_000: 1}))) < 500


def test_feature_keys_of_2024_decide_their_kind(tmp_path):
    folder = folders.write_first_layout(tmp_path / "p")
    read = read_lerobot_config(folder)
    assert (read.config.state_dim, read.config.env_state_dim) == (3, 4)
    assert read.before_2025


def test_a_2024_mode_for_an_undeclared_input_is_refused(tmp_path):
    folder = folders.write_first_layout(
        tmp_path / "p", input_normalization_modes={"observation.image": "mean_std"}
    )
    assert "which input_shapes has not" in refusal(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
sizes = st.integers(-3, 700) | json_values


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(KNOWN_FIELDS)), sizes, max_size=4)
    | st.dictionaries(st.text(string.ascii_lowercase + "_", max_size=12), json_values, max_size=2)
)
def test_any_configuration_is_valid_or_refused(changes, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(folders.config_json() | changes))
    try:
        outcome = read_lerobot_config(tmp_path).config
    except CheckpointError as error:
        outcome = str(error)
    assert isinstance(outcome, ACTConfig) or "config.json" in outcome
