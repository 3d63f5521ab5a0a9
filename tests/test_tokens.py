import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlens.config import ACTConfig, Backbone, Camera
from actlens.errors import HookNameError
from actlens.tokens import PixelRect, TokenMap


def config(*sizes, **changes):
    cameras = tuple(Camera(f"observation.images.cam{i}", *size) for i, size in enumerate(sizes))
    return ACTConfig(cameras=cameras, action_dim=6, state_dim=6, **changes)


def test_the_order_is_latent_state_environment_then_camera_by_camera_row_by_row():
    tokens = TokenMap(config((64, 96), (32, 33), env_state_dim=3))
    assert tokens.names == (
        "latent",
        "state",
        "env_state",
        *(f"cam0[{row},{col}]" for row in range(2) for col in range(3)),
        "cam1[0,0]",
        "cam1[0,1]",
    )
    assert len(tokens) == tokens.config.n_tokens == 11
    assert tokens.cameras == ("cam0", "cam1")
    assert [tokens.camera(name) for name in tokens.cameras] == [slice(3, 9), slice(9, 11)]
    assert [tokens.grid(name) for name in tokens.cameras] == [(2, 3), (1, 2)]


def test_the_default_camera_has_fifteen_rows_of_twenty():
    tokens = TokenMap(config((480, 640), (480, 640)))
    assert len(tokens) == 602
    assert tokens.index("cam1[14,19]") == 601
    assert tokens.pixels(2 + 3 * 20 + 7) == PixelRect("cam0", 96, 224, 128, 256)


def test_policies_without_state_or_cameras_have_the_tokens_they_have():
    blind = ACTConfig(cameras=(), action_dim=2, state_dim=None, env_state_dim=4)
    assert TokenMap(blind).names == ("latent", "env_state")
    assert [TokenMap(blind).pixels(i) for i in range(2)] == [None, None]


sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))


@given(st.lists(sizes, min_size=1, max_size=3), st.booleans())
def test_names_indices_and_pixels_agree_for_every_camera_size(cameras, dilated):
    backbone = {"backbone": Backbone.RESNET50, "dilation": True} if dilated else {}
    tokens = TokenMap(config(*cameras, **backbone))
    covered = dict.fromkeys(tokens.cameras, 0)
    for token in tokens.tokens:
        assert tokens.index(token.name) == token.index
        assert tokens[token.index] is token
        rect = tokens.pixels(token.index)
        assert (rect is None) == (token.camera is None)
        if rect is None:
            continue
        assert rect.camera == token.camera
        corners = [(rect.top, rect.left), (rect.bottom - 1, rect.right - 1)]
        assert [tokens.at_pixel(token.camera, y, x) for y, x in corners] == [token.index] * 2
        covered[token.camera] += (rect.bottom - rect.top) * (rect.right - rect.left)
    # The cells tile each image: they do not overlap, and leave nothing out.
    assert covered == {f"cam{i}": height * width for i, (height, width) in enumerate(cameras)}


@pytest.mark.parametrize("dilated", [False, True])
def test_the_grid_is_the_one_that_torchvisions_resnet_makes(dilated):
    import torch

    from actlens.model.backbone import resnet_trunk

    backbone = {"backbone": Backbone.RESNET50, "dilation": True} if dilated else {}
    for size in ((1, 1), (31, 33), (32, 64), (65, 97)):
        policy = config(size, **backbone)
        with torch.device("meta"):
            x = torch.empty(1, 3, *size)
            for module in resnet_trunk(policy).values():
                x = module(x)
        assert TokenMap(policy).grid("cam0") == tuple(x.shape[2:])


def test_fractional_pixels_belong_to_the_cell_they_lie_in():
    tokens = TokenMap(config((64, 96)))
    assert tokens.at_pixel("cam0", 31.9, 63.5) == tokens.index("cam0[0,1]")


@pytest.mark.parametrize(
    ("y", "x"), [(-0.5, 0), (0, -1), (33, 0), (0, 50), (40, 0), (float("nan"), 0)]
)
def test_pixels_outside_the_image_have_no_token_even_inside_the_last_cell(y, x):
    tokens = TokenMap(config((33, 50)))  # two rows of cells, of which the second is one pixel high
    with pytest.raises(HookNameError, match="lies outside camera 'cam0', whose images are 33x50"):
        tokens.at_pixel("cam0", y, x)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("cam0[2,0]", "'cam0\\[2,0\\]' lies outside the 2x3 token grid of cam0"),
        ("cam0[0,3]", "outside the 2x3 token grid"),
        ("cam9[0,0]", "no camera 'cam9'; this policy has cam0"),
        ("gripper", "'gripper' is not a token: use latent, state, cam0\\[row,col\\]"),
        ("cam0[-1,0]", "is not a token"),
    ],
)
def test_addresses_that_name_no_token_are_errors(address, message):
    with pytest.raises(HookNameError, match=message):
        TokenMap(config((64, 96))).index(address)


def test_addresses_may_be_written_with_spaces():
    tokens = TokenMap(config((64, 96)))
    assert tokens.index(" cam0[ 1 , 2 ]".replace("[ ", "[").replace(" ]", "]")) == 7


def test_the_frame_has_a_row_per_token_and_no_numbers_where_there_is_no_pixel():
    frame = TokenMap(config((64, 96))).frame()
    assert list(frame.columns) == ["index", "name", "camera", "row", "col"]
    assert list(frame["index"]) == list(range(8))
    assert frame["row"].isna().sum() == 2
    assert frame.loc[7, ["camera", "row", "col"]].tolist() == ["cam0", 1, 2]
