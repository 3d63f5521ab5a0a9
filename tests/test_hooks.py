import contextlib
import copy
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from actlens.errors import HookNameError, HookNeverFired, HookReturnError
from actlens.hooked_module import HookedRootModule
from actlens.hooks import HookPoint


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.hook_in = HookPoint("batch feature")
        self.hook_out = HookPoint("batch feature")
        self.hook_same = self.hook_out

    def forward(self, x):
        return self.hook_out(x + self.linear(self.hook_in(x)))


class Toy(HookedRootModule):
    """Two blocks whose `hook_out` and `hook_in` hold one and the same tensor, and a part unused."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.hook_total = HookPoint("batch")
        self.hook_detail = HookPoint("batch feature", on_demand=True)
        self.hook_unused = HookPoint("batch")
        self.setup()

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        if self.hook_detail.is_watched:
            self.hook_detail(x * 2)
        return self.hook_total(x.sum(-1))


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def keep(activation, hook):
    return None


def double(activation, hook):
    return activation * 2


def zero_in_place(activation, hook):
    activation.zero_()


class Stop(Exception):
    """Raised inside hooks on purpose."""


def raise_stop(activation, hook):
    raise Stop


# ── receipts ─────────────────────────────────────────────────────────────────────────────────


def test_a_receipt_counts_calls_changed_elements_and_the_largest_change(toy, x):
    def edit(activation, hook):
        activation[0, 1] += 3
        activation[2] -= 1
        return activation

    with toy.hooks(fwd_hooks=[("blocks.0.hook_in", edit)]):
        toy(x)
        toy(x)
    (receipt,) = toy.receipts
    assert (receipt.name, receipt.fired, receipt.changed) == ("blocks.0.hook_in", 2, 2 * (1 + 4))
    assert receipt.max_change == pytest.approx(3, abs=1e-6)


@pytest.mark.parametrize(
    "idle",
    [
        keep,
        lambda activation, hook: activation,
        lambda activation, hook: activation.clone(),
        lambda activation, hook: activation.mul_(1),
    ],
    ids=["None", "the same tensor", "a copy", "in place, same values"],
)
def test_a_hook_that_changes_nothing_has_a_receipt_that_says_so(toy, x, idle):
    before = toy(x)
    after = toy.run_with_hooks(x, fwd_hooks=[("blocks.1.hook_out", idle)])
    assert torch.equal(before, after)
    (receipt,) = toy.receipts
    assert (receipt.fired, receipt.changed, receipt.max_change) == (1, 0, 0)


def test_infinities_and_nans_that_stay_are_no_change():
    point = HookPoint()
    handle = point.add_hook(lambda activation, hook: activation.clone())
    point(torch.tensor([float("-inf"), float("nan"), float("inf"), 1.0]))
    assert (handle.receipt.changed, handle.receipt.max_change) == (0, 0)


@pytest.mark.parametrize(("value", "largest"), [("inf", "inf"), ("-inf", "inf"), ("nan", "nan")])
def test_writing_an_infinity_or_nan_is_a_change_of_that_size(value, largest):
    point = HookPoint()
    handle = point.add_hook(lambda activation, hook: torch.full_like(activation, float(value)))
    point(torch.ones(3))
    assert handle.receipt.changed == 3
    assert str(handle.receipt.max_change) == largest


def test_edits_of_gradients_leave_receipts_too(toy, x):
    with toy.hooks(bwd_hooks=[("blocks.1.hook_out", double), ("blocks.0.hook_out", keep)]):
        toy(x).sum().backward()
    edited, read = toy.receipts
    assert (edited.fired, edited.changed, edited.max_change) == (1, 12, 1)
    assert (read.fired, read.changed) == (1, 0)


def test_an_in_place_edit_of_a_gradient_replaces_it_there_and_nowhere_else(toy, x):
    # d(x + linear(x)): both summands' gradients are one tensor until somebody edits a copy.
    toy(x).sum().backward()
    before = [p.grad.clone() for p in toy.blocks[1].parameters()]
    toy.zero_grad()
    with toy.hooks(bwd_hooks=[("blocks.1.hook_in", zero_in_place)]):
        x = x.clone().requires_grad_()
        toy(x).sum().backward()
    after = [p.grad for p in toy.blocks[1].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    through_the_skip_alone = torch.ones(3, 4) + toy.blocks[0].linear.weight.sum(0)
    assert torch.allclose(x.grad, through_the_skip_alone, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_hooks_edit_and_count_in_every_grad_mode(toy, x, mode):
    with mode():
        edited = toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_in", zero_in_place)])
        changed = toy.receipts[0].changed
        read = toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_in", keep)])
        plain = toy(x)
    assert changed == 12
    assert not torch.equal(edited, plain)
    assert torch.equal(read, plain)
    assert toy.receipts[0].changed == 0


# ── the cache ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", ["cache first", "cache last"])
def test_a_cached_activation_is_not_overwritten_by_a_later_in_place_edit(toy, x, order):
    _, clean = toy.run_with_cache(x)
    clean = {name: value.clone() for name, value in clean.items()}
    store, caching, _ = toy.get_caching_hooks()
    editing = [("blocks.1.hook_in", zero_in_place)]
    with toy.hooks(fwd_hooks=[*caching, *editing] if order == "cache first" else editing + caching):
        toy(x)
    # blocks.0.hook_out holds the very tensor that blocks.1.hook_in is handed.
    assert torch.equal(store["blocks.0.hook_out"], clean["blocks.0.hook_out"])
    at_the_edit = store["blocks.1.hook_in"]
    assert torch.equal(at_the_edit, clean["blocks.1.hook_in"] * (order == "cache first"))


def test_editing_the_output_in_place_leaves_the_cache_alone(toy, x):
    output, cache = toy.run_with_cache(x)
    kept = cache["hook_total"].clone()
    with torch.no_grad():
        output.zero_()
    assert torch.equal(cache["hook_total"], kept)


def test_summing_up_gradients_leaves_cached_gradients_alone():
    class Bias(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))
            self.hook = HookPoint()
            self.setup()

        def forward(self):
            return (self.hook(self.bias) * torch.arange(3.0)).sum()

    net = Bias()
    _, cache = net.run_with_cache(incl_bwd=True)
    net().backward()  # torch adds into the memory of the first gradient
    assert net.bias.grad.tolist() == [0, 2, 4]
    assert cache["hook_grad"].tolist() == [0, 1, 2]


def test_everything_is_cached_by_reference(toy, x):
    _, cache = toy.run_with_cache(x)
    assert cache["blocks.0.hook_out"].data_ptr() == cache["blocks.1.hook_in"].data_ptr()


def test_caching_everything_leaves_out_on_demand_points_unless_they_are_named(toy, x):
    _, everything = toy.run_with_cache(x)
    assert "hook_detail" not in everything
    _, named = toy.run_with_cache(x, names_filter="hook_detail")
    assert list(named) == ["hook_detail"]
    _, matching = toy.run_with_cache(x, names_filter=lambda name: name.startswith("hook_"))
    assert set(matching) == {"hook_total", "hook_detail"}


@pytest.mark.parametrize(
    "names",
    [
        ["blocks.0.hook_in", "blocks.1.hook_in"],
        ("blocks.0.hook_in", "blocks.1.hook_in"),
        {"blocks.0.hook_in": 1, "blocks.1.hook_in": 2}.keys(),
        "blocks.*.hook_in",
        ["blocks.0.hook_in", "blocks.*.hook_in"],
        "blocks.?.hook_in",
        lambda name: name.endswith("hook_in"),
    ],
    ids=["list", "tuple", "keys", "glob", "overlapping", "question mark", "predicate"],
)
def test_names_may_be_lists_globs_predicates_and_overlap(toy, x, names):
    _, cache = toy.run_with_cache(x, names_filter=names)
    assert sorted(cache) == ["blocks.0.hook_in", "blocks.1.hook_in"]


def test_names_may_come_from_a_generator_that_can_be_read_once(toy, x):
    _, cache = toy.run_with_cache(x, names_filter=(f"blocks.{i}.hook_in" for i in range(2)))
    assert sorted(cache) == ["blocks.0.hook_in", "blocks.1.hook_in"]


def test_an_alias_is_the_same_point_under_its_first_name(toy, x):
    assert toy.hook_point("blocks.0.hook_same") is toy.hook_point("blocks.0.hook_out")
    for names in ("blocks.0.hook_same", "*.0.*_same", lambda name: name == "blocks.0.hook_same"):
        assert list(toy.run_with_cache(x, names_filter=names)[1]) == ["blocks.0.hook_out"]
    assert toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_same", double)]).shape == (3,)
    assert [r.name for r in toy.receipts] == ["blocks.0.hook_out"]


def test_remove_batch_dim_goes_by_the_axes():
    class Net(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.hook_batched = HookPoint("batch feature")
            self.hook_shared = HookPoint("token feature")
            self.setup()

        def forward(self, x):
            return self.hook_batched(x) + self.hook_shared(torch.zeros(1, 4))

    _, cache = Net().run_with_cache(torch.ones(1, 4), remove_batch_dim=True)
    assert cache["hook_batched"].shape == (4,)
    assert cache["hook_shared"].shape == (1, 4)


# ── errors ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "call",
    [
        lambda toy, x: toy.add_hook("blocks.0.hook_inn", keep),
        lambda toy, x: toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_inn", keep)]),
        lambda toy, x: toy.run_with_cache(x, names_filter="blocks.0.hook_inn"),
        lambda toy, x: toy.run_with_cache(x, names_filter=["hook_total", "blocks.0.hook_inn"]),
        lambda toy, x: toy.hook_point("blocks.0.hook_inn"),
        lambda toy, x: toy.list_hooks("blocks.0.hook_inn"),
    ],
)
def test_a_typo_names_the_closest_hook_point(toy, x, call):
    with pytest.raises(
        HookNameError, match=r"'blocks.0.hook_inn'.*Did you mean 'blocks.0.hook_in'"
    ):
        call(toy, x)
    assert not toy.list_hooks()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("blocks.*.hook_inn", r"'blocks.\*.hook_inn' matches no hook point. Did you mean"),
        (lambda name: False, "predicate matches none"),
        ([], "empty list"),
        ("blocks.0", "'blocks.0' is not a hook point"),
        ("", "'' is not a hook point"),
    ],
    ids=["glob", "predicate", "empty", "module", "nothing"],
)
def test_names_that_select_nothing_are_errors(toy, x, names, message):
    with pytest.raises(HookNameError, match=message):
        toy.run_with_cache(x, names_filter=names)


def test_a_hook_that_the_run_never_reached_is_an_error(toy, x):
    with pytest.raises(HookNeverFired, match="never reached hook_unused"):
        toy.run_with_hooks(x, fwd_hooks=[("hook_unused", double)])
    with pytest.raises(HookNeverFired, match="hook_unused"):
        toy.run_with_cache(x, names_filter=["blocks.0.hook_in", "hook_unused"])
    assert not toy.list_hooks()


def test_of_a_group_one_reached_point_is_enough(toy, x):
    assert "hook_unused" not in toy.run_with_cache(x)[1]
    toy.run_with_hooks(x, fwd_hooks=[(lambda name: name.startswith("hook_"), keep)])
    _, caching, _ = toy.get_caching_hooks()
    with toy.hooks(fwd_hooks=caching):
        toy(x)


def test_a_block_in_which_the_model_did_not_run_is_no_error(toy):
    with toy.hooks(fwd_hooks=[("hook_unused", double)]):
        pass
    assert toy.receipts[0].fired == 0


def test_the_callers_own_error_is_not_replaced_by_one_about_silent_hooks(toy, x):
    def run_and_fail():
        with toy.hooks(fwd_hooks=[("hook_unused", double)]):
            toy(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_fail()


def test_a_run_that_broke_off_does_not_make_later_hooks_silent(toy, x):
    requests = [("blocks.0.hook_in", raise_stop), ("hook_total", double)]
    with toy.hooks(fwd_hooks=requests), pytest.raises(Stop):
        toy(x)
    assert [r.fired for r in toy.receipts] == [1, 0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda a: a[0], r"returned shape \(4,\); the activation has shape \(3, 4\) \(batch, feat"),
        (lambda a: a[None], r"returned shape \(1, 3, 4\)"),
        (lambda a: 0.0, "returned float: return a tensor, or None"),
        (lambda a: (a, a), "returned tuple"),
        (lambda a: a.double(), "returned dtype torch.float64; the activation has dtype"),
        (lambda a: a.to("meta"), "returned device meta"),
    ],
    ids=["row", "extra axis", "number", "pair", "dtype", "device"],
)
def test_a_hook_must_return_what_can_stand_in_for_the_activation(toy, x, result, message):
    with pytest.raises(HookReturnError, match=message):
        toy.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_in", lambda a, hook: result(a))])
    assert not toy.list_hooks()


def test_nothing_stays_attached_when_a_later_request_is_refused(toy):
    class Picky(Toy):
        def check_hooks_to_add(self, hook_point, hook_point_name, hook, *args, **kwargs):
            assert hook_point_name != "hook_total", "refused"

    for requests, error in (
        ([("blocks.0.hook_in", keep), ("hook_totale", keep)], HookNameError),
        ([("blocks.0.hook_in", keep), ("hook_total", keep)], AssertionError),
    ):
        picky = Picky()
        with pytest.raises(error), picky.hooks(fwd_hooks=requests, reset_hooks_end=False):
            pass
        assert not picky.list_hooks()
        assert picky.context_level == 0


def test_an_axis_named_twice_is_refused():
    with pytest.raises(HookNameError, match="distinct"):
        HookPoint("token token")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"head": 0}, r"has axes \(batch, feature\); it has no head"),
        ({"feature": 4}, "axis 'feature' has 4 entries; 4 selects none"),
        ({"feature": -5}, "-5 selects none"),
        ({"feature": slice(4, 9)}, "4:9 selects none"),
        ({"batch": slice(2, 1)}, "2:1 selects none"),
        ({"feature": (0, 4, 9)}, "4, 9 selects none"),
        ({"feature": ()}, "an empty set selects none"),
        ({"feature": (3, -1)}, "names an entry twice"),
    ],
)
def test_an_index_outside_the_activation_is_an_error(toy, where, message):
    with pytest.raises(HookNameError, match=message):
        toy.hook_point("blocks.0.hook_in").index(where, (3, 4))


def test_sets_select_every_combination_in_the_order_of_the_axes():
    point = HookPoint("batch head query token")
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for where in (
        {"head": (2, 0)},
        {"head": (2, 0), "token": (1, 4, 3)},
        {"head": (2, 0), "query": slice(1, 3), "token": (1, 4)},
        {"batch": (1,), "query": 2, "token": (-1, 0)},
        {"batch": (1, 0), "head": (1,), "query": (3, 0), "token": slice(2, None)},
    ):
        expected = x
        for axis in reversed(range(4)):  # the referee selects one axis after the other
            chosen = where.get(point.axes[axis])
            if isinstance(chosen, tuple):
                expected = expected.index_select(axis, torch.tensor(chosen) % x.shape[axis])
            elif isinstance(chosen, int):
                expected = expected.select(axis, chosen)
            elif chosen is not None:
                expected = expected.narrow(axis, chosen.start, len(range(x.shape[axis])[chosen]))
        assert torch.equal(x[point.index(where, x.shape)], expected), where


# ── attaching and removing ───────────────────────────────────────────────────────────────────


def test_a_block_removes_its_own_hooks_and_no_others(toy, x):
    toy.add_hook("blocks.0.hook_in", keep)
    with toy.hooks(fwd_hooks=[("blocks.0.hook_in", double)]):
        inside = toy.add_hook("blocks.0.hook_in", double)
    handles = toy.list_hooks()["blocks.0.hook_in"]
    assert [handle.user_hook for handle in handles] == [keep, double]
    assert handles[1] is inside[0]


def test_hooks_that_were_kept_survive_later_blocks(toy, x):
    toy.run_with_hooks(x, fwd_hooks=[("hook_total", double)], reset_hooks_end=False)
    toy.run_with_hooks(x, fwd_hooks=[("hook_total", keep)])
    assert len(toy.list_hooks()["hook_total"]) == 1
    toy.reset_hooks()
    assert not toy.list_hooks()


def test_a_copy_of_a_hooked_model_has_hooks_of_its_own(toy, x):
    toy.add_hook("hook_total", double)
    twin = copy.deepcopy(toy)
    assert torch.equal(toy(x), twin(x))
    twin.reset_hooks()
    assert not twin.list_hooks()
    assert len(toy.list_hooks()) == 1
    assert torch.equal(toy(x), 2 * twin(x))
    assert twin.hook_point("hook_total") is twin.hook_total


def test_idle_points_hand_the_tensor_through(x):
    assert HookPoint()(x) is x


@pytest.mark.parametrize(
    "watch",
    [
        lambda point: point.register_forward_hook(lambda module, args, output: None),
        lambda point: point.register_forward_pre_hook(lambda module, args: None),
        lambda point: point.register_full_backward_hook(lambda module, inputs, outputs: None),
        lambda point: point.register_full_backward_pre_hook(lambda module, outputs: None),
    ],
)
def test_torchs_own_hooks_are_seen(watch):
    point = HookPoint()
    assert not point.is_watched
    handle = watch(point)
    assert point.is_watched
    handle.remove()
    assert not point.is_watched


def test_retain_grad_inside_a_hook_sees_the_gradient(toy, x):
    seen = []

    def retain(activation, hook):
        activation.retain_grad()
        seen.append(activation)

    toy.run_with_hooks(x, fwd_hooks=[("blocks.1.hook_out", retain)]).sum().backward()
    assert torch.equal(seen[0].grad, torch.ones(3, 4))


def test_a_warning_says_that_backward_hooks_would_be_gone(toy, x):
    with pytest.warns(UserWarning, match="removed before a backward pass"):
        toy.run_with_hooks(x, bwd_hooks=[("hook_total", keep)])


# ── nothing leaks, whatever the order ────────────────────────────────────────────────────────


HOOKS = {"keep": keep, "double": double, "zero": zero_in_place, "raise": raise_stop}
NAMES = ["blocks.0.hook_in", "blocks.1.hook_same", "hook_total", "blocks.*.hook_in"]
requests = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(HOOKS))), max_size=3)


class HookLifecycle(RuleBasedStateMachine):
    """Blocks nested at random, permanent and plain hooks, errors: the books must balance."""

    @initialize()
    def start(self):
        self.toy = Toy()
        self.x = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
        self.bare = self.toy(self.x).detach()
        self.blocks = []  # open context managers and how many hooks each attached
        self.plain = self.permanent = 0

    def attached(self, name):
        return 2 if "*" in name else 1

    def named(self, chosen):
        return [(name, HOOKS[key]) for name, key in chosen]

    @rule(chosen=requests, backward=requests)
    def open_block(self, chosen, backward):
        block = self.toy.hooks(fwd_hooks=self.named(chosen), bwd_hooks=self.named(backward))
        block.__enter__()
        self.blocks.append((block, sum(self.attached(n) for n, _ in chosen + backward)))

    @precondition(lambda self: self.blocks)
    @rule(fails=st.booleans())
    def close_block(self, fails):
        block, _ = self.blocks.pop()
        error = Stop() if fails else None
        swallowed = block.__exit__(type(error) if fails else None, error, None)
        assert not swallowed

    @rule(name=st.sampled_from(NAMES), key=st.sampled_from(["keep", "double"]))
    def add(self, name, key):
        self.toy.add_hook(name, HOOKS[key])
        self.plain += self.attached(name)

    @rule(name=st.sampled_from(NAMES))
    def add_permanent(self, name):
        self.toy.add_perma_hook(name, keep)
        self.permanent += self.attached(name)

    @rule(chosen=requests)
    def run(self, chosen):
        with contextlib.suppress(Stop):
            self.toy.run_with_hooks(self.x, fwd_hooks=self.named(chosen))

    @rule()
    def run_with_cache(self):
        with contextlib.suppress(Stop):
            self.toy.run_with_cache(self.x, names_filter="blocks.*")

    @rule()
    def ask_for_nonsense(self):
        with pytest.raises(HookNameError):
            self.toy.run_with_hooks(self.x, fwd_hooks=[("hook_total", keep), ("nonsense", keep)])

    @precondition(lambda self: not self.blocks)
    @rule()
    def reset(self):
        self.toy.reset_hooks()
        self.plain = 0

    @invariant()
    def every_hook_is_accounted_for(self):
        handles = [h for hs in self.toy.list_hooks().values() for h in hs]
        in_blocks = sum(count for _, count in self.blocks)
        assert len(handles) == self.plain + self.permanent + in_blocks
        assert sum(h.is_permanent for h in handles) == self.permanent
        assert self.toy.context_level == len(self.blocks)
        # torch's own registers say the same
        registered = sum(
            len(p._forward_hooks) + len(p._backward_hooks) for p in self.toy.hook_points()
        )
        assert registered == len(handles)

    def teardown(self):
        while self.blocks:
            self.close_block(fails=False)
        self.toy.reset_hooks(including_permanent=True)
        assert not any(p.is_watched for p in self.toy.hook_points())
        assert torch.equal(self.toy(self.x), self.bare)


HookLifecycle.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
TestHookLifecycle = HookLifecycle.TestCase


def test_partials_and_bound_methods_are_hooks_too(toy, x):
    class Scaler:
        def scale(self, activation, hook, by=3):
            return activation * by

    plain = toy(x)
    by_method = toy.run_with_hooks(x, fwd_hooks=[("hook_total", Scaler().scale)])
    by_partial = toy.run_with_hooks(x, fwd_hooks=[("hook_total", partial(Scaler().scale, by=2))])
    assert torch.equal(by_method, plain * 3)
    assert torch.equal(by_partial, plain * 2)
