import numpy as np
import pytest
import torch
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
    assert tokens.index(" cam0[ 1 , 2 ]") == 7
    assert tokens.index("cam0[ 0 : 2 , 2 ]") == (4, 7)


REGIONS = TokenMap(config((32, 32), (128, 97)))  # the second camera has 4 rows of 4 from token 3


@pytest.mark.parametrize(
    ("address", "indices", "rect"),
    [
        ("cam1[1:3, 2:4]", (9, 10, 13, 14), (32, 64, 96, 97)),
        ("cam1[2, :]", (11, 12, 13, 14), (64, 0, 96, 97)),
        ("cam1[:, 0]", (3, 7, 11, 15), (0, 0, 128, 32)),
        ("cam1[:2, 3:]", (6, 10), (0, 96, 64, 97)),
        ("cam1[1:2, 1:2]", (8,), (32, 32, 64, 64)),
        ("cam1[1,1]", 8, (32, 32, 64, 64)),
        ("cam1[:,:]", tuple(range(3, 19)), (0, 0, 128, 97)),
        ("cam1", slice(3, 19), (0, 0, 128, 97)),
    ],
)
def test_a_region_of_a_camera_is_its_tokens_row_by_row_and_their_pixels(address, indices, rect):
    assert REGIONS.index(address) == indices
    assert REGIONS.rect(address) == PixelRect("cam1", *rect)


@pytest.mark.parametrize(
    "address",
    ["cam1[0:5, 0]", "cam1[0, 3:5]", "cam1[2:2, 0]", "cam1[3:1, 0]", "cam1[4:, 0]", "cam1[0, 9]"],
)
def test_regions_that_leave_the_grid_or_are_empty_are_errors(address):
    for look in (REGIONS.index, REGIONS.rect):
        with pytest.raises(HookNameError, match="4x4 token grid of cam1, or selects nothing"):
            look(address)


@pytest.mark.parametrize("address", ["state", "latent", "cam1[0]", "cam1[-1,0]", "cam1[0:2:2, 0]"])
def test_what_is_no_part_of_an_image_has_no_pixels(address):
    with pytest.raises(HookNameError, match=r"no part of an image: use cam0\[row,col\], cam1"):
        REGIONS.rect(address)


some_rects = st.tuples(
    st.integers(0, 100), st.integers(0, 90), st.integers(1, 99), st.integers(1, 99)
)


@given(some_rects, st.booleans())
def test_the_tokens_in_a_rectangle_are_those_of_its_pixels(corner_and_size, dilated):
    top, left, height, width = corner_and_size
    backbone = {"backbone": Backbone.RESNET50, "dilation": True} if dilated else {}
    tokens = TokenMap(config((32, 32), (128, 97), **backbone))
    rect = PixelRect("cam1", top, left, min(top + height, 128), min(left + width, 97))
    pixels = [(y, x) for y in range(top, rect.bottom) for x in range(left, rect.right)]
    expected = sorted({tokens.at_pixel("cam1", y, x) for y, x in pixels})
    mask = np.zeros((128, 97), dtype=bool)
    mask[top : rect.bottom, left : rect.right] = True
    assert list(tokens.in_rect(rect)) == list(tokens.in_mask("cam1", mask)) == expected
    assert list(tokens.in_mask("cam1", torch.from_numpy(mask))) == expected


def test_a_mask_of_scattered_pixels_is_the_tokens_that_hold_one():
    mask = np.zeros((128, 97), dtype=bool)
    places = [(0, 0), (127, 96), (63, 31), (64, 32)]
    for place in places:
        mask[place] = True
    expected = tuple(sorted(REGIONS.at_pixel("cam1", *place) for place in places))
    assert REGIONS.in_mask("cam1", mask) == expected
    assert all(type(index) is int for index in expected), "so that they can be saved as JSON"


def test_a_mask_of_the_grids_size_is_taken_token_by_token():
    mask = np.eye(4, dtype=bool)
    assert REGIONS.in_mask("cam1", mask) == (3, 8, 13, 18)


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda t: t.in_rect(PixelRect("cam9", 0, 0, 1, 1)), "no camera 'cam9'"),
        (lambda t: t.in_rect(PixelRect("cam1", 0, 0, 129, 1)), "leaves the image of 128x97"),
        (lambda t: t.in_rect(PixelRect("cam1", 0, -1, 9, 1)), "leaves the image"),
        (lambda t: t.in_rect(PixelRect("cam1", 5, 0, 5, 1)), "is empty"),
        (lambda t: t.in_mask("cam9", np.ones((4, 4), dtype=bool)), "no camera 'cam9'"),
        (lambda t: t.in_mask("cam1", np.ones((4, 5), dtype=bool)), r"\(4, 5\); .* 128x97 and 4x4"),
        (lambda t: t.in_mask("cam1", np.ones((128, 97))), "boolean; this one is torch.float64"),
        (lambda t: t.in_mask("cam1", np.zeros((128, 97), dtype=bool)), "holds no token"),
    ],
)
def test_rectangles_and_masks_that_select_nothing_are_errors(look, message):
    with pytest.raises(HookNameError, match=message):
        look(REGIONS)


def test_the_frame_has_a_row_per_token_and_no_numbers_where_there_is_no_pixel():
    frame = TokenMap(config((64, 96))).frame()
    assert list(frame.columns) == ["index", "name", "camera", "row", "col"]
    assert list(frame["index"]) == list(range(8))
    assert frame["row"].isna().sum() == 2
    assert frame.loc[7, ["camera", "row", "col"]].tolist() == ["cam0", 1, 2]
