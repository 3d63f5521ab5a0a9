"""The hook layer against TransformerLens itself: the same network twice, the same calls on both.

A scenario is a function of one network that returns what happened; both sides must return the same.
Where actlens differs on purpose, a test at the end says how, on both sides.
"""

import copy
import logging
import os
import re
import warnings
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from actlens.errors import HookNameError, HookNeverFired, HookReturnError
from actlens.hooked_module import HookedRootModule
from actlens.hooks import HookPoint


@pytest.fixture(scope="module")
def theirs():
    """TransformerLens' two classes; in CI their absence is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its many dependencies, while they are imported
        if os.environ.get("CI"):
            import transformer_lens
        else:
            transformer_lens = pytest.importorskip(
                "transformer_lens", reason="transformer-lens is part of the dev extra"
            )
        from transformer_lens.hook_points import HookPoint
    return SimpleNamespace(HookedRootModule=transformer_lens.HookedRootModule, HookPoint=HookPoint)


def build(library):
    """A residual network with hook points at three depths, and one that nothing reaches."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.hook_in = library.HookPoint()
            self.linear = nn.Linear(4, 4)
            self.hook_mid = library.HookPoint()

        def forward(self, x):
            return x + self.hook_mid(torch.tanh(self.linear(self.hook_in(x))))

    class Net(library.HookedRootModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.hook_embed = library.HookPoint()
            self.blocks = nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(4, 2)
            self.hook_logits = library.HookPoint()
            self.hook_spare = library.HookPoint()
            self.refuse = None
            self.setup()

        def forward(self, x, *, scale=1.0, reduce=False):
            x = self.hook_embed(x * scale)
            for block in self.blocks:
                x = block(x)
            logits = self.hook_logits(self.head(x))
            return logits.sum() if reduce else logits

        def check_hooks_to_add(self, hook_point, hook_point_name, hook, *args, **kwargs):
            if hook_point_name == self.refuse:
                raise PermissionError(hook_point_name)

    return Net()


@pytest.fixture
def mine():
    return build(SimpleNamespace(HookedRootModule=HookedRootModule, HookPoint=HookPoint))


@pytest.fixture
def original(theirs):
    return build(theirs)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
MID, EMBED = "blocks.0.hook_mid", "hook_embed"


def same(a, b):
    """Equality through dictionaries, sequences and tensors, the types included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def logger(log, tag):
    return lambda activation, hook: log.append((tag, hook.name, tuple(activation.shape)))


def scaled(by):
    return lambda activation, hook: activation * by


def count(net):
    """Attached hooks: as the library lists them, and as torch holds them."""
    listed = {name: len(handles) for name, handles in net.list_hooks().items()}
    torchs = sum(len(p._forward_hooks) + len(p._backward_hooks) for p in net.hook_points())
    return listed, torchs


# ── scenarios ────────────────────────────────────────────────────────────────────────────────


def names(net):
    points = [point.name for point in net.hook_points()]
    return list(net.hook_dict), list(net.mod_dict), points, net.blocks[1].hook_mid.layer()


def order_of_attachment(net):
    log = []
    for tag in "abc":
        net.add_hook(MID, logger(log, tag))
    net.add_hook(EMBED, logger(log, "d"))
    net(X)
    return log


def prepended_hooks_go_first(net):
    log = []
    net.add_hook(MID, logger(log, "a"))
    net.add_hook(MID, logger(log, "b"), prepend=True)
    net.add_hook(MID, logger(log, "c"), prepend=True)
    net.blocks[0].hook_mid.add_hook(logger(log, "d"))
    net(X)
    kept = [handle.user_hook for handle in net.blocks[0].hook_mid.fwd_hooks]
    for hook in kept:
        hook(torch.zeros(1), net.blocks[0].hook_mid)
    return log


def a_predicate_attaches_to_every_match(net):
    log = []
    net.add_hook(lambda name: "blocks" in name, logger(log, "p"))
    output = net.run_with_hooks(
        X, fwd_hooks=[(lambda name: name.endswith("mid"), scaled(0.5)), (EMBED, logger(log, "e"))]
    )
    return log, output, count(net)


def replaced_activations_flow_on(net):
    ones = lambda activation, hook: torch.ones_like(activation)
    return [
        net.run_with_hooks(X, fwd_hooks=[(MID, hook)])
        for hook in (ones, scaled(0), lambda a, hook: a, lambda a, hook: None)
    ]


def in_place_edits_count_without_a_return(net):
    def edit(activation, hook):
        activation[:, 0] = 0
        activation[1] += 2

    with torch.no_grad():
        return net.run_with_hooks(X, fwd_hooks=[(MID, edit), ("hook_logits", edit)])


def several_hooks_on_one_point_chain(net):
    hooks = [(MID, scaled(2)), (MID, lambda a, hook: a + 1), (MID, scaled(3))]
    return net.run_with_hooks(X, fwd_hooks=hooks), net(X), count(net)


def arguments_reach_the_model(net):
    return net.run_with_hooks(X, scale=2.0, reduce=True, fwd_hooks=[(MID, scaled(2))])


def blocks_nest_and_each_removes_its_own(net):
    counts = [count(net)]
    with net.hooks(fwd_hooks=[(MID, scaled(2))]) as entered:
        counts.append((count(net), net.context_level, entered is net, net(X)))
        with net.hooks(fwd_hooks=[(MID, scaled(3)), (EMBED, scaled(2))]):
            levels = [h.context_level for h in net.blocks[0].hook_mid.fwd_hooks]
            counts.append((count(net), net.context_level, levels, net(X)))
        counts.append((count(net), net(X)))
    return counts, count(net), net.context_level, net(X)


def hooks_added_by_hand_survive_blocks(net):
    net.add_hook(MID, scaled(2))
    net.run_with_hooks(X, fwd_hooks=[(MID, scaled(3))])
    net.run_with_cache(X)
    with net.hooks(bwd_hooks=[(MID, scaled(3))]):
        net.add_hook(EMBED, scaled(2))
    return count(net), net(X)


def permanent_hooks_survive_all_but_their_own_removal(net):
    seen = []
    net.add_perma_hook(MID, scaled(2))
    net.add_hook(EMBED, scaled(2), is_permanent=True)
    net.blocks[1].hook_mid.add_perma_hook(scaled(3), dir="bwd")
    net.add_hook(MID, scaled(5))
    for step in (
        lambda: net.run_with_hooks(X, fwd_hooks=[(MID, scaled(1))]),
        lambda: net.reset_hooks(),
        lambda: net.remove_all_hook_fns(),
        lambda: net.reset_hooks(including_permanent=True, direction="fwd"),
        lambda: net.reset_hooks(including_permanent=True),
    ):
        step()
        flags = [h.is_permanent for hs in net.list_hooks().values() for h in hs]
        seen.append((count(net), flags, net(X)))
    return seen


def reset_hooks_in_every_scope(net):
    left = []
    for direction, permanent, level in product(("fwd", "bwd", "both"), (False, True), (None, 1, 2)):
        for number, way in enumerate(("fwd", "bwd")):
            net.add_hook(MID, scaled(1), dir=way)
            net.add_hook(MID, scaled(1), dir=way, is_permanent=True, level=1)
            net.add_hook(EMBED, scaled(1), dir=way, level=1 + number)
        net.reset_hooks(direction=direction, including_permanent=permanent, level=level)
        left.append(count(net))
        net.reset_hooks(including_permanent=True)
        left.append(count(net))
    return left


def remove_hooks_of_one_point(net):
    point, left = net.blocks[0].hook_mid, []
    for arguments in ({}, {"dir": "bwd"}, {"dir": "both"}, {"dir": "both", "level": 2}):
        for way, level in product(("fwd", "bwd"), (None, 2)):
            point.add_hook(scaled(1), dir=way, level=level)
        point.remove_hooks(**arguments)
        left.append((len(point.fwd_hooks), len(point.bwd_hooks)))
        point.remove_hooks("both", including_permanent=True)
    return left


def has_hooks_in_every_scope(net):
    point = net.blocks[0].hook_mid
    answers = [point.has_hooks()]
    point.add_hook(scaled(1), is_permanent=True, level=1)
    point.add_hook(scaled(1), dir="bwd", level=2)
    for direction, permanent, level in product(
        ("fwd", "bwd", "both"), (False, True), (None, 1, 2, 3)
    ):
        answers.append(point.has_hooks(direction, permanent, level))
    return answers


def list_hooks_by_every_filter(net):
    net.add_perma_hook(MID, scaled(1))
    net.add_hook(MID, scaled(1), dir="bwd")
    net.add_hook(EMBED, scaled(1))
    found = []
    for names_filter in (None, MID, [MID, EMBED], lambda name: "embed" in name, "hook_spare"):
        for direction, permanent in product(("fwd", "bwd", "both"), (False, True)):
            listed = net.list_hooks(names_filter, direction, permanent)
            found.append({name: len(handles) for name, handles in listed.items()})
    return found


def unknown_directions_are_value_errors(net):
    point, errors = net.blocks[0].hook_mid, []
    for call in (
        lambda: point.add_hook(scaled(1), dir="sideways"),
        lambda: point.remove_hooks("sideways"),
        lambda: point.has_hooks("sideways"),
    ):
        with pytest.raises(ValueError, match="Invalid direction sideways"):
            call()
        errors.append((len(point.fwd_hooks), point.has_hooks()))
    return errors


def an_error_in_a_hook_leaves_nothing(net):
    def fail(activation, hook):
        raise ZeroDivisionError

    net.add_hook(EMBED, scaled(1))
    states = []
    for run in (
        lambda: net.run_with_hooks(X, fwd_hooks=[(EMBED, scaled(2)), (MID, fail)]),
        lambda: net.run_with_hooks(X, fwd_hooks=[(lambda name: True, fail)]),
        lambda: net.run_with_hooks("not a tensor", fwd_hooks=[(MID, scaled(2))]),
    ):
        with pytest.raises((ZeroDivisionError, TypeError, AttributeError)):
            run()
        states.append((count(net), net.context_level, net.is_caching))
    both = ([(MID, scaled(2))], [(MID, scaled(2))])
    with pytest.raises(ZeroDivisionError), net.hooks(*both), net.hooks([(MID, fail)]):
        net(X)
    return states, count(net), net.context_level, net(X)


def an_error_while_caching_leaves_nothing(net):
    with pytest.raises((TypeError, AttributeError)):
        net.run_with_cache("not a tensor")
    return count(net), net.context_level, net.is_caching


def a_refused_hook_is_not_attached(net):
    net.refuse = MID
    for arguments in ((MID,), (lambda name: True,)):
        with pytest.raises(PermissionError):
            net.add_hook(*arguments, scaled(1))
    net.reset_hooks()
    net.check_and_add_hook(net.hook_embed, EMBED, scaled(2))
    return count(net), net(X)


def hooks_that_stay_after_the_run(net):
    first = net.run_with_hooks(X, fwd_hooks=[(MID, scaled(2))], reset_hooks_end=False)
    second, state = net(X), count(net)
    net.reset_hooks()
    return first, second, state, net(X), count(net)


def contexts_last_until_they_are_cleared(net):
    def remember(activation, hook):
        hook.ctx["sum"] = hook.ctx.get("sum", 0) + activation.sum().item()

    point, seen = net.blocks[0].hook_mid, []
    for arguments in ({}, {}, {"clear_contexts": True}, {}):
        net.run_with_hooks(X, fwd_hooks=[(MID, remember)], **arguments)
        seen.append(dict(point.ctx))
    net.reset_hooks(clear_contexts=False)
    seen.append(dict(point.ctx))
    net.reset_hooks()
    seen.append(dict(point.ctx))
    point.ctx["a"] = 1
    point.clear_context()
    seen.append(dict(point.ctx))
    point.ctx["a"] = 1
    net.clear_contexts()
    return [*seen, dict(point.ctx)]


def gradients(net):
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def backward_hooks_may_return_three_things(net):
    found = []
    for hook in (
        lambda gradient, hook: gradient * 2,
        lambda gradient, hook: (gradient * 2,),
        lambda gradient, hook: None,
    ):
        net.zero_grad()
        with net.hooks(bwd_hooks=[(MID, hook), ("blocks.1.hook_in", hook)]):
            net(X).square().sum().backward()
        found.append(gradients(net))
    return found


def backward_hooks_run_from_the_output_to_the_input(net):
    log = []
    hooks = [(lambda name: "spare" not in name, logger(log, "b")), (MID, logger(log, "second"))]
    with net.hooks(fwd_hooks=[(MID, logger(log, "f"))], bwd_hooks=hooks):
        net(X.clone().requires_grad_()).sum().backward()
    return log


def prepended_backward_hooks_go_first(net):
    log = []
    net.add_hook(MID, logger(log, "a"), dir="bwd")
    net.add_hook(MID, logger(log, "b"), dir="bwd", prepend=True)
    net(X).sum().backward()
    return log, [h.is_permanent for h in net.blocks[0].hook_mid.bwd_hooks]


def backward_hooks_outlive_the_forward_if_asked(net):
    log = []
    output = net.run_with_hooks(X, bwd_hooks=[(MID, logger(log, "b"))], reset_hooks_end=False)
    output.sum().backward()
    net.reset_hooks()
    return log, count(net)


def caching_by_every_filter(net):
    caches = []
    for names_filter in (None, MID, [MID, EMBED], lambda name: "blocks.1" in name):
        output, cache = net.run_with_cache(X, names_filter=names_filter)
        caches.append((output, dict(cache), count(net), net.is_caching))
        assert not any(value.requires_grad for value in cache.values())
    return caches


def caching_gradients(net):
    x = X.clone().requires_grad_()
    found = []
    for names_filter in (None, [MID, "hook_logits"]):
        net.zero_grad()
        output, cache = net.run_with_cache(x, reduce=True, names_filter=names_filter, incl_bwd=True)
        found.append((output, dict(cache), gradients(net), count(net)))
    return found


def caching_to_a_device(net):
    _, cache = net.run_with_cache(X, device="meta")
    return {name: (value.device.type, tuple(value.shape)) for name, value in cache.items()}


def caching_without_the_batch_axis(net):
    output, cache = net.run_with_cache(X[:1], remove_batch_dim=True)
    store = net.add_caching_hooks(MID, remove_batch_dim=True)
    net(X[:1])
    net(X)  # a larger batch keeps its axis
    return output, dict(cache), dict(store)


def caching_hooks_that_stay(net):
    store = net.add_caching_hooks([MID, EMBED], incl_bwd=True)
    mine = {"earlier": torch.zeros(1)}
    assert net.add_caching_hooks(MID, cache=mine) is mine
    states = [(count(net), net.is_caching, list(store), list(mine))]
    net(X.clone().requires_grad_()).sum().backward()
    states.append((dict(store), dict(mine)))
    net(X * 2)
    states.append((dict(store), count(net)))
    net.reset_hooks()
    net(X)
    return states, dict(store), count(net), net.is_caching


def caching_hooks_by_hand(net):
    store, forward, backward = net.get_caching_hooks(["hook_logits", MID], incl_bwd=True)
    asked = [name for name, _ in forward], [name for name, _ in backward], net.is_caching
    with net.hooks(fwd_hooks=forward, bwd_hooks=backward):
        net(X).sum().backward()
    return sorted(map(sorted, asked[:2])), asked[2], store, net.is_caching, count(net)


def a_cache_that_goes_on(net):
    _, cache = net.run_with_cache(X, names_filter=MID, reset_hooks_end=False)
    first = dict(cache)
    net(X * 2)
    state = count(net)
    net.reset_hooks()
    return first, dict(cache), state


def caching_inside_a_block_sees_its_edits(net):
    with net.hooks(fwd_hooks=[(EMBED, scaled(2))]):
        _, inside = net.run_with_cache(X)
        state = count(net)
    _, outside = net.run_with_cache(X)
    return dict(inside), dict(outside), state


def the_old_names_for_caching(net):
    everything, some = {}, {}
    net.cache_all(everything)
    net.cache_some(some, lambda name: "mid" in name, device="cpu")
    net(X)
    return everything, some, count(net)


def partials_are_hooks(net):
    def fn(activation, hook, by, log):
        log.append(hook.name)
        return activation * by

    log = []
    hook = partial(fn, by=3, log=log)
    return net.run_with_hooks(X, fwd_hooks=[(lambda name: "blocks" in name, hook)]), log


def handles_remember_what_was_attached(net):
    hook = scaled(2)
    handle = net.blocks[0].hook_mid.add_hook(hook, level=4)
    facts = (handle.user_hook is hook, handle.is_permanent, handle.context_level)
    handle.hook.remove()
    return facts, net(X)


def gradients_can_be_retained_in_hooks(net):
    kept = []

    def retain(activation, hook):
        activation.retain_grad()
        kept.append(activation)
        return activation

    net.run_with_hooks(X, fwd_hooks=[(MID, retain)]).sum().backward()
    return kept[0].grad


def copies_and_states_do_not_know_of_hooks(net):
    net.add_hook(MID, scaled(2))
    twin = copy.deepcopy(net)
    return twin(X), count(twin), list(net.state_dict())


SCENARIOS = [
    names,
    order_of_attachment,
    prepended_hooks_go_first,
    a_predicate_attaches_to_every_match,
    replaced_activations_flow_on,
    in_place_edits_count_without_a_return,
    several_hooks_on_one_point_chain,
    arguments_reach_the_model,
    blocks_nest_and_each_removes_its_own,
    hooks_added_by_hand_survive_blocks,
    permanent_hooks_survive_all_but_their_own_removal,
    reset_hooks_in_every_scope,
    remove_hooks_of_one_point,
    has_hooks_in_every_scope,
    list_hooks_by_every_filter,
    unknown_directions_are_value_errors,
    an_error_in_a_hook_leaves_nothing,
    an_error_while_caching_leaves_nothing,
    a_refused_hook_is_not_attached,
    hooks_that_stay_after_the_run,
    contexts_last_until_they_are_cleared,
    backward_hooks_may_return_three_things,
    backward_hooks_run_from_the_output_to_the_input,
    prepended_backward_hooks_go_first,
    backward_hooks_outlive_the_forward_if_asked,
    caching_by_every_filter,
    caching_gradients,
    caching_to_a_device,
    caching_without_the_batch_axis,
    caching_hooks_that_stay,
    caching_hooks_by_hand,
    a_cache_that_goes_on,
    caching_inside_a_block_sees_its_edits,
    the_old_names_for_caching,
    partials_are_hooks,
    handles_remember_what_was_attached,
    gradients_can_be_retained_in_hooks,
    copies_and_states_do_not_know_of_hooks,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_both_libraries_do_the_same(scenario, mine, original):
    expected, found = scenario(original), scenario(mine)
    assert same(found, expected), f"TransformerLens: {expected}\nactlens: {found}"


# ── where actlens differs, and TransformerLens does what it is said to do ────────────────────


@pytest.mark.parametrize("names_filter", ["blocks.0.hook_middle", [], lambda name: False])
def test_a_filter_that_matches_nothing_is_an_error_and_not_an_empty_cache(
    mine, original, names_filter
):
    assert original.run_with_cache(X, names_filter=names_filter)[1] == {}
    with pytest.raises(HookNameError):
        mine.run_with_cache(X, names_filter=names_filter)


def test_an_unknown_name_is_a_key_error_that_suggests_the_right_one(mine, original):
    with pytest.raises(KeyError) as bare:
        original.add_hook("blocks.0.hook_middle", scaled(1))
    assert str(bare.value) == "'blocks.0.hook_middle'"
    with pytest.raises(KeyError, match=re.escape("Did you mean 'blocks.0.hook_mid'")):
        mine.add_hook("blocks.0.hook_middle", scaled(1))


def test_a_predicate_without_a_match_is_an_error_and_not_a_hook_nowhere(mine, original):
    original.add_hook(lambda name: False, scaled(1))
    with pytest.raises(HookNameError):
        mine.add_hook(lambda name: False, scaled(1))


def test_listing_the_hooks_of_an_unknown_name_is_an_error(mine, original):
    assert original.list_hooks("blocks.0.hook_middle") == {}
    with pytest.raises(HookNameError):
        mine.list_hooks("blocks.0.hook_middle")


@pytest.mark.parametrize("several", [(MID, EMBED), {MID: 0, EMBED: 1}.keys()])
def test_names_may_come_in_any_iterable_and_as_globs(mine, original, several):
    with pytest.raises(ValueError, match="names_filter must be"):
        original.run_with_cache(X, names_filter=several)
    assert set(mine.run_with_cache(X, names_filter=several)[1]) == {MID, EMBED}
    assert original.run_with_cache(X, names_filter="blocks.*.hook_mid")[1] == {}
    assert len(mine.run_with_cache(X, names_filter="blocks.*.hook_mid")[1]) == 2


def test_a_later_in_place_edit_does_not_reach_into_the_cache(mine, original):
    def cached(net):
        store, forward, _ = net.get_caching_hooks(MID)
        with torch.no_grad(), net.hooks([*forward, (MID, lambda a, hook: a.zero_())]):
            net(X)
        return store[MID]

    assert not cached(original).any()
    assert cached(mine).all()


def test_an_in_place_edit_acts_at_its_point_and_not_on_all_that_shares_the_tensor(mine, original):
    def zero(activation, hook):
        activation.zero_()

    zero_in_place = [("blocks.1.hook_in", zero)]
    zero_returned = [("blocks.1.hook_in", lambda a, hook: a * 0)]
    with torch.no_grad():
        in_place, returned = (
            [net.run_with_hooks(X, fwd_hooks=[(name, fn)]) for net in (original, mine)]
            for ((name, fn),) in (zero_in_place, zero_returned)
        )
    assert torch.equal(*returned)
    assert torch.equal(in_place[1], returned[1])
    assert not torch.equal(in_place[0], returned[0])  # it has zeroed the skip connection as well


def test_an_in_place_edit_of_a_gradient_stays_where_it_was_made(mine, original):
    def gradient_of_the_skip(net):
        x = X.clone().requires_grad_()
        with net.hooks(bwd_hooks=[("blocks.1.hook_mid", lambda g, hook: g.zero_())]):
            net(x).sum().backward()
        return x.grad

    clean = X.clone().requires_grad_()
    with mine.hooks(bwd_hooks=[("blocks.1.hook_mid", scaled(0))]):
        mine(clean).sum().backward()
    assert torch.equal(gradient_of_the_skip(mine), clean.grad)
    # There the sum's gradient is one tensor for both summands, and the edit silences both.
    assert not torch.equal(gradient_of_the_skip(original), clean.grad)


def test_a_hook_that_never_fires_is_an_error(mine, original):
    assert torch.equal(
        original.run_with_hooks(X, fwd_hooks=[("hook_spare", scaled(0))]), original(X)
    )
    assert original.run_with_cache(X, names_filter="hook_spare")[1] == {}
    with pytest.raises(HookNeverFired):
        mine.run_with_hooks(X, fwd_hooks=[("hook_spare", scaled(0))])
    with pytest.raises(HookNeverFired):
        mine.run_with_cache(X, names_filter="hook_spare")


def test_a_replacement_must_fit(mine, original):
    one_row = lambda activation, hook: activation[:1]
    broadcast = original.run_with_hooks(X, fwd_hooks=[(MID, one_row)])
    assert broadcast.shape == (3, 2)  # every row got the first one's activation, unasked
    with pytest.raises(HookReturnError, match="shape"):
        mine.run_with_hooks(X, fwd_hooks=[(MID, one_row)])


def test_kept_hooks_are_not_taken_for_those_of_a_later_block(mine, original):
    for net in (original, mine):
        net.run_with_hooks(X, fwd_hooks=[(MID, scaled(2))], reset_hooks_end=False)
        net.run_with_hooks(X, fwd_hooks=[(EMBED, scaled(2))])
    assert count(original) == ({}, 0)  # both had level 1
    assert count(mine) == ({MID: 1}, 1)


def test_an_error_removes_what_the_call_attached_even_if_it_was_to_stay(mine, original):
    for net in (original, mine):
        with pytest.raises((TypeError, AttributeError)):
            net.run_with_hooks("no tensor", fwd_hooks=[(MID, scaled(2))], reset_hooks_end=False)
    assert count(original) == ({MID: 1}, 1)
    assert count(mine) == ({}, 0)


def test_the_warning_about_lost_backward_hooks_is_a_python_warning(mine, original, caplog):
    with caplog.at_level(logging.WARNING):
        original.run_with_hooks(X, bwd_hooks=[(MID, scaled(1))])
    assert "removes the backward hooks" in caplog.text
    with pytest.warns(UserWarning, match="backward hooks are removed"):
        mine.run_with_hooks(X, bwd_hooks=[(MID, scaled(1))])


def test_adding_a_hook_gives_back_its_handles(mine, original):
    assert original.add_hook(MID, scaled(2)) is None
    (handle,) = mine.add_hook(MID, scaled(2))
    mine.hook_point(MID).remove(handle)
    assert count(mine) == ({}, 0)


def test_positions_are_sliced_from_the_cache_by_address_and_not_while_running(mine, original):
    original.run_with_cache(X, pos_slice=0)
    with pytest.raises(TypeError, match="pos_slice"):
        mine.run_with_cache(X, pos_slice=0)


# ── TransformerLens' analysis tools on a HookedACT ───────────────────────────────────────────


def test_its_interchange_tools_run_on_a_hooked_act(theirs, model, observe):
    from transformer_lens.tools.analysis import interchange

    scenes = observe(model, rows=4)
    actions_of = lambda rows: model({key: value[rows] for key, value in scenes.items()})[:, 0]
    base, source = torch.tensor([0, 1]), torch.tensor([2, 3])
    arguments = {"positions": torch.tensor([4, 4])}
    point = "encoder.1.hook_resid_pre"
    with torch.no_grad():
        taken = interchange.collect_activations(model, point, source, actions_of, **arguments)
        sources = {key: value[2:] for key, value in scenes.items()}
        _, cache = model.run_with_cache(sources, names_filter=point)
        assert torch.equal(taken, cache[point][:, 4])
        whole = interchange.SubspaceInterchange(torch.eye(model.config.d_model))
        moved = interchange.run_with_intervention(
            model, point, whole, base, taken, actions_of, **arguments
        )

        def patch(activation, hook):
            activation[:, 4] = taken

        with model.hooks(fwd_hooks=[(point, patch)]):
            expected = actions_of(base)
        plain = actions_of(base)
    assert (moved - expected).abs().max() < 1e-5
    assert (moved - plain).abs().max() > 1e-4
