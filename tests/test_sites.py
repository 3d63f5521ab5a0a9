import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actlens.config import ACTConfig, Backbone, Camera
from actlens.errors import HookNameError
from actlens.hooks import HookPoint
from actlens.model.act import HookedACT
from actlens.model.backbone import resnet_trunk
from actlens.sites import Site, parse_where, split_address
from actlens.tokens import TokenMap

POLICY = ACTConfig(
    cameras=(Camera("observation.images.top", 64, 96), Camera("observation.images.side", 32, 32)),
    action_dim=3,
    state_dim=3,
    joints=("pan", "lift", "gripper"),
)
TOKENS = TokenMap(POLICY)
STREAM = HookPoint("batch token d_model")
HEADS = HookPoint("batch token head d_head")
PATTERN = HookPoint("batch head token_q token_k")
CROSS = HookPoint("batch head query token")
NEURONS = HookPoint("batch query neuron")
ACTIONS = HookPoint("batch chunk joint")
LATENT = HookPoint("batch latent")
PIXELS = HookPoint("batch pixel d_model")
PIXELS.name = "embed.top.hook_tokens"
TOP = slice(2, 8)


@pytest.mark.parametrize(
    ("point", "selectors", "where"),
    [
        (NEURONS, "5", {"neuron": 5}),
        (NEURONS, "-1", {"neuron": -1}),
        (NEURONS, "3:7", {"neuron": slice(3, 7)}),
        (NEURONS, "query=0:3, 5", {"query": slice(0, 3), "neuron": 5}),
        (NEURONS, "query=-2:", {"query": slice(-2, None)}),
        (NEURONS, ":", {"neuron": slice(None, None)}),
        (STREAM, "state", {"token": 1}),
        (STREAM, "top[1,2]", {"token": 7}),
        (STREAM, "top[1, 2]", {"token": 7}),
        (STREAM, "top", {"token": TOP}),
        (STREAM, "token=side", {"token": slice(8, 9)}),
        (STREAM, "token=4", {"token": 4}),
        (STREAM, "batch=0, latent, 7", {"batch": 0, "token": 0, "d_model": 7}),
        (HEADS, "head=3", {"head": 3}),
        (HEADS, "head = 3", {"head": 3}),
        (HEADS, "head=1, top", {"head": 1, "token": TOP}),
        (PATTERN, "state", {"token_k": 1}),
        (PATTERN, "token_q=state, token_k=top[0,0]", {"token_q": 1, "token_k": 2}),
        (CROSS, "head=1, query=0:3", {"head": 1, "query": slice(0, 3)}),
        (CROSS, "state,", {"token": 1}),
        (ACTIONS, "joint=gripper", {"joint": 2}),
        (ACTIONS, "chunk=0:5, 1", {"chunk": slice(0, 5), "joint": 1}),
        (LATENT, "", {}),
        (STREAM, "{state, top[1,2]}", {"token": (1, 7)}),
        (STREAM, "{state, side, 0}", {"token": (1, 8, 0)}),
        (STREAM, "token={state 4:7}", {"token": (1, 4, 5, 6)}),
        (HEADS, "head={0,2}, top", {"head": (0, 2), "token": TOP}),
        (NEURONS, "{5, 5, 3}", {"neuron": (5, 3)}),
        (ACTIONS, "joint={gripper, pan}", {"joint": (2, 0)}),
        (STREAM, "top[0:2, 1]", {"token": (3, 6)}),
        (STREAM, "token=top[:, 1:3], 5", {"token": (3, 4, 6, 7), "d_model": 5}),
        (STREAM, "{state, top[1, :], top[1,2]}", {"token": (1, 5, 6, 7)}),
        (
            PATTERN,
            "head=0, token_q=top[0:2,0], state",
            {"head": 0, "token_q": (2, 5), "token_k": 1},
        ),
        (PIXELS, "top[1,2]", {"pixel": 5}),
        (PIXELS, "top", {"pixel": slice(0, 6)}),
        (PIXELS, "top[0:2, 2], 7", {"pixel": (2, 5), "d_model": 7}),
        (PIXELS, "pixel={4, top[0,0:2]}", {"pixel": (4, 0, 1)}),
        (PIXELS, "{top}", {"pixel": tuple(range(6))}),
    ],
)
def test_selectors_mean_what_they_say(point, selectors, where):
    assert parse_where(selectors, point, TOKENS) == where


@pytest.mark.parametrize(
    ("point", "selectors", "message"),
    [
        (NEURONS, "head=3", r"has axes \(batch, query, neuron\); it has no head"),
        (NEURONS, "state", "none of them holds tokens, so 'state' selects nothing"),
        (NEURONS, "5, 6", "selects twice on axis 'neuron'"),
        (NEURONS, "neuron=5, 6", "selects twice on axis 'neuron'"),
        (HEADS, "head=state", "'state' is no index on axis 'head'"),
        (NEURONS, "neuron=latent", "'latent' is no index on axis 'neuron'"),
        (NEURONS, "query=0:10:2", "'0:10:2' is no index on axis 'query'"),
        (NEURONS, "query=", "is not a selector"),
        (NEURONS, "5 6", "is not a selector"),
        (NEURONS, "1.5", "none of them holds tokens, so .1.5. selects"),
        (STREAM, "top[9,9]", "outside the 2x3 token grid of top"),
        (STREAM, "wrist[0,0]", "no camera 'wrist'"),
        (STREAM, "elbow", "'elbow' is not a token"),
        (STREAM, "top[1,2", "is not a selector"),
        (ACTIONS, "joint=elbow", "0:10 or one of pan, lift, gripper"),
        (STREAM, "{}", "an empty set selects nothing"),
        (STREAM, "{state, elbow}", "'elbow' is not a token"),
        (STREAM, "token={3:}", "need both ends"),
        (STREAM, "token={3:-1}", "the second larger"),
        (STREAM, "{state", "is not a selector"),
        (LATENT, "{state}", "none of them holds tokens"),
        (STREAM, "top[0:3, 0]", "outside the 2x3 token grid of top"),
        (STREAM, "{top[1:1, 0]}", "selects nothing of it"),
        (STREAM, "top[0:2]", "'top\\[0:2\\]' is not a token"),
        (PIXELS, "side[0,0]", "embed.top.hook_tokens belongs to another camera than 'side"),
        (PIXELS, "state", r"'state' is no part of an image: use top\[row,col\], side"),
    ],
)
def test_selectors_that_mean_nothing_are_errors(point, selectors, message):
    with pytest.raises(HookNameError, match=message):
        parse_where(selectors, point, TOKENS)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("embed.hook_tokens", ("embed.hook_tokens", "")),
        ("encoder.1.hook_out[top[1,2]]", ("encoder.1.hook_out", "top[1,2]")),
        (" decoder.0.mlp.hook_post [ 5 ]", ("decoder.0.mlp.hook_post", "5")),
    ],
)
def test_an_address_is_a_name_and_what_stands_in_brackets(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["a.hook_q[5", "a.hook_q[5]x", "a.hook_q["])
def test_an_unclosed_bracket_is_an_error(address):
    with pytest.raises(HookNameError, match="does not close"):
        split_address(address)


bounds = st.none() | st.integers(-5, 5)
several = st.lists(st.integers(-5, 5), min_size=1, max_size=4, unique=True).map(tuple)
index = st.integers(-5, 5) | st.builds(slice, bounds, bounds) | several


@given(st.dictionaries(st.sampled_from(["batch", "head", "query", "token"]), index))
def test_a_site_written_down_and_read_again_is_the_same_site(where):
    name, selectors = split_address(str(Site("decoder.0.cross_attn.hook_pattern", where)))
    assert name == "decoder.0.cross_attn.hook_pattern"
    assert parse_where(selectors, CROSS, TOKENS) == where


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("image", {"height": slice(32, 64), "width": slice(32, 90)}),
        ("layer1", {"height": slice(8, 16), "width": slice(8, 23)}),
        ("layer2", {"height": slice(4, 8), "width": slice(4, 12)}),
        ("layer3", {"height": slice(2, 4), "width": slice(2, 6)}),
        ("layer4", {"height": slice(1, 2), "width": slice(1, 3)}),
    ],
)
def test_a_region_of_a_camera_selects_its_cells_in_the_cameras_maps(stage, where):
    tokens = TokenMap(ACTConfig(cameras=(Camera("top", 70, 90),), action_dim=3, state_dim=3))
    point = HookPoint("batch channel height width")
    point.name = f"embed.top.hook_{stage}"
    assert parse_where("top[1, 1:3]", point, tokens) == where
    assert parse_where("channel={5, 7}, top[1, 1:3]", point, tokens) == {"channel": (5, 7)} | where
    assert parse_where("height=3, 4:9", point, tokens) == {"height": 3, "width": slice(4, 9)}


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 96), (65, 97)])
def test_the_tokens_cells_tile_every_map_that_torchvisions_resnet_makes(size, dilated):
    backbone = {"backbone": Backbone.RESNET50, "dilation": True} if dilated else {}
    policy = ACTConfig(cameras=(Camera("top", *size),), action_dim=3, state_dim=3, **backbone)
    tokens = TokenMap(policy)
    rows, cols = tokens.grid("top")
    with torch.device("meta"):
        x = torch.empty(1, 3, *size)
        maps = {"image": x}
        for name, module in resnet_trunk(policy).items():
            maps[name] = x = module(x)
    for stage in ("image", "layer1", "layer2", "layer3", "layer4"):
        point = HookPoint("batch channel height width")
        point.name = f"embed.top.hook_{stage}"
        height, width = maps[stage].shape[2:]
        down = [parse_where(f"top[{row},0]", point, tokens)["height"] for row in range(rows)]
        across = [parse_where(f"top[0,{col}]", point, tokens)["width"] for col in range(cols)]
        for spans, length in ((down, height), (across, width)):
            covered = [i for span in spans for i in range(span.start, span.stop)]
            assert covered == list(range(length))


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ("side[0,0]", "embed.top.hook_layer3 belongs to another camera than 'side"),
        ("{top[0,0], top[1,1]}", "is no part of an image"),
        ("top[0,0], height=3", "selects twice on axis 'height'"),
        ("state", "'state' is no part of an image"),
        ("top[2,0]", "outside the 2x3 token grid"),
    ],
)
def test_what_is_no_region_of_a_cameras_maps_is_an_error(selectors, message):
    point = HookPoint("batch channel height width")
    point.name = "embed.top.hook_layer3"
    with pytest.raises(HookNameError, match=message):
        parse_where(selectors, point, TOKENS)


def test_the_addresses_of_the_reference_page_name_what_the_page_says():
    page = (Path(__file__).parents[1] / "docs/reference/hook-points.md").read_text()
    table = page.split("## Addresses")[1]
    addresses = re.findall(r"`((?:embed|encoder|decoder|hook_actions)[^`]*\[[^`]*\])`", table)
    policy = ACTConfig(
        cameras=(Camera("observation.images.top", 240, 320), Camera("side", 64, 64)),
        action_dim=3, state_dim=3, joints=("pan", "lift", "gripper"), n_encoder_layers=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = HookedACT(policy)
    sites = {address: model.site(address) for address in addresses}
    assert len(sites) > 12
    assert all(site.where for site in sites.values())
    region = sites["embed.top.hook_layer3[channel=5, top[2:5, 3:6]]"]
    assert region.where == {"channel": 5, "height": slice(4, 10), "width": slice(6, 12)}
