import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlens.config import ACTConfig, Camera
from actlens.errors import HookNameError
from actlens.hooks import HookPoint
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
