"""v*: Jacobians against finite differences, Gauss-Newton and Adam against solvers of others."""

import re

import numpy as np
import pytest
import torch
from scipy import optimize
from torch.utils.flop_counter import FlopCounterMode

from actlens import HookedACT
from actlens.rome import (
    NO_JITTER,
    Adam,
    EditError,
    EditOptions,
    GaussNewton,
    KeyMetric,
    MLPRuns,
    MLPSite,
    Offset,
    Request,
    key_statistics,
    make_edit,
    prepare,
)
from actlens.rome.linearised import Linearised
from actlens.rome.metric import Readers
from actlens.rome.problem import Problem
from actlens.scene import Scene
from tests.interventions.conftest import ARCHITECTURES
from tests.rome.conftest import PAN, asked, chunk_of, scene, scenes


def problem_of(model, metric, *requests):
    prepared = prepare(model, requests, metric.statistics.site.block, jitter=NO_JITTER)
    readers = Readers.of(metric, torch.cat(prepared.keys))
    return Problem.of(prepared.runs, readers, prepared.resolved), readers


# ── the Jacobian ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("architecture", "block"),
    [
        ("act", "decoder.0"),
        ("act", "encoder.0"),
        ("pre_norm", "encoder.1"),
        ("two_decoder_layers", "decoder.0"),
        ("gelu_and_environment_state", "decoder.0"),
    ],
)
def test_the_jacobian_is_that_of_finite_differences(build, architecture, block):
    model = build(**ARCHITECTURES[architecture])
    metric = KeyMetric.of(key_statistics(model, scenes(24), block), 1e-2)
    requests = (Request(scene(3), PAN), Request(scene(8), PAN))
    problem, _ = problem_of(model, metric, *requests)
    generator = torch.Generator().manual_seed(0)
    write = 0.1 * torch.randn(problem.nothing.shape, generator=generator, dtype=torch.float64)
    there = Linearised.at(problem, write)
    # Whole forwards with a hook that adds the write: nothing of ours but the write itself.
    site = MLPSite.of(model, block)
    step = 1e-5
    for _ in range(3):
        direction = torch.randn(write.shape, generator=generator, dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            sides.append(
                points_under(model, site, problem, requests, write + sign * step * direction)
            )
        slope = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(there.pushed(direction), slope, rtol=1e-6, atol=1e-8)
        weights = torch.randn(slope.shape, generator=generator, dtype=torch.float64)
        inner = (there.pulled_back(weights) * direction).sum()
        torch.testing.assert_close(inner, (weights * slope).sum(), rtol=1e-6, atol=1e-8)
    by_columns = torch.stack(
        [there.pulled_back(e.view_as(slope)).flatten() for e in torch.eye(slope.numel()).double()]
    )
    torch.testing.assert_close(there.gram(), by_columns @ by_columns.T, rtol=1e-9, atol=1e-10)


def points_under(model, site, problem, requests, write):
    """The requested actions when a hook adds what the write says, by whole forwards."""
    written = problem.written(write)
    found = []
    for number, request in enumerate(requests):
        mine = problem.request == number

        def add(output, hook, mine=mine):
            if len(written) == len(mine):  # one unit a point: at that position alone
                output[0, [0, 1, 2]] += written[mine][:, 0]
            else:
                output[0] += written[problem.unit[mine][0]]

        with model.hooks([(site.output, add)]):
            found.append(chunk_of(model, request.scene)[:3])
    return torch.cat(found)


# ── Gauss-Newton ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0.05, 0.3])
def test_gauss_newton_finds_the_shortest_value(policy, metric, size):
    """The referee minimises |write|^2 under the targets by sequential quadratic programming."""
    problem, readers = problem_of(
        policy, metric, Request(scene(3), Offset({"pan": size, "lift": -size}), positions=(1,))
    )
    ours = GaussNewton().solve(problem, readers).write
    as_write = lambda x: torch.tensor(x).view_as(ours)
    found = optimize.minimize(
        lambda x: (x @ x, 2 * x),
        np.zeros(ours.numel()),
        jac=True,
        method="SLSQP",
        constraints={
            "type": "eq",
            "fun": lambda x: problem.missing(as_write(x)).flatten().numpy(),
            "jac": lambda x: -jacobian_rows(problem, as_write(x)),
        },
        options={"maxiter": 200, "ftol": 1e-14},
    )
    assert found.success
    assert float(ours.norm()) == pytest.approx(np.linalg.norm(found.x), rel=2e-3)
    assert problem.missing(ours).abs().max() < 1e-10


def jacobian_rows(problem, write):
    there = Linearised.at(problem, write)
    n = problem.target.numel()
    units = torch.eye(n, dtype=torch.float64)
    return torch.stack(
        [there.pulled_back(e.view_as(problem.target)).flatten() for e in units]
    ).numpy()


def test_gauss_newton_is_at_its_end_in_a_few_steps(policy, metric):
    problem, readers = problem_of(policy, metric, Request(scene(3), PAN))
    assert GaussNewton().solve(problem, readers).n_steps <= 8
    with pytest.raises(EditError, match="cannot be reached"):
        GaussNewton(max_steps=1).solve(problem, readers)


def test_out_of_reach_it_comes_as_near_as_can_be_and_says_how_near(policy, metric):
    """The referee minimises what is missing by trust regions."""
    request = Request(scene(3), Offset({"pan": 2.4, "lift": -2.4}))
    problem, readers = problem_of(policy, metric, request)
    as_write = lambda x: torch.tensor(x).view_as(problem.nothing)
    nearest = optimize.least_squares(
        lambda x: problem.missing(as_write(x)).flatten().numpy(),
        np.zeros(problem.nothing.numel()),
        jac=lambda x: -jacobian_rows(problem, as_write(x)),
    )
    assert np.abs(nearest.fun).max() > 0.1
    with pytest.raises(EditError, match="cannot be reached") as error:
        GaussNewton().solve(problem, readers)
    still = float(re.search(r"still ([\d.]+) standard", str(error.value))[1])
    assert still == pytest.approx(np.abs(nearest.fun).max(), rel=0.05)


def test_too_many_actions_at_once_are_an_error(policy, metric, monkeypatch):
    monkeypatch.setattr("actlens.rome.values.MAX_ROWS", 8)
    with pytest.raises(EditError, match=r"9 actions .* the limit is 8"):
        make_edit(policy, [Request(scene(3), PAN)], metric)


# ── Adam ─────────────────────────────────────────────────────────────────────────────────────


def test_a_long_run_of_adam_ends_where_gauss_newton_does_but_longer(policy, metric):
    problem, readers = problem_of(policy, metric, Request(scene(3), PAN))
    slow = Adam(n_steps=3000, learning_rate=0.02, weight_decay=0.0, clamp=1e9)
    adam = slow.solve(problem, readers).write
    newton = GaussNewton().solve(problem, readers).write
    assert problem.missing(adam).abs().max() < 1e-3
    assert problem.missing(newton).abs().max() < 1e-10
    assert newton.norm() < adam.norm() < 2 * newton.norm()


def test_adam_takes_the_steps_of_torchs_adam(policy, metric):
    """The referee: torch's optimiser on the paper's loss, with a hook that adds the values."""
    one, other = scene(3), scene(11)
    ours = Adam(n_steps=12, unrelated=(other,))
    edit = make_edit(
        policy, [Request(one, PAN)], metric, jitter=NO_JITTER, options=EditOptions(values=ours)
    )
    target, still = asked(policy, one)[:3], chunk_of(policy, other)[:3]
    rows = edit.right  # by which values spread over the weights, held against others elsewhere
    outputs = [
        policy.run_with_cache(s)[1]["decoder.0.hook_mlp_out"][0, :3].detach() for s in (one, other)
    ]
    share = [
        policy.run_with_cache(s)[1]["decoder.0.mlp.hook_post"][0, :3].detach() @ rows.T
        for s in (one, other)
    ]
    values = torch.zeros(3, 32, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.3 * float(outputs[0].square().mean().sqrt()))
    wanted = (target - chunk_of(policy, one)[:3]).square().sum(1).mean()

    def actions(s, written):
        def add(output, hook):
            output[0, :3] += written

        with policy.hooks([("decoder.0.hook_mlp_out", add)]):
            return policy.predict(policy.prepare(s))[0, :3]

    for _ in range(12):
        optimizer.zero_grad()
        loss = (actions(one, share[0] @ values) - target).square().sum(1).mean() / wanted
        drift = (actions(other, share[1] @ values) - still).square().sum(1).mean()
        before = outputs[0].norm(dim=1)
        length = (values.square().sum(1) + 1e-300).sqrt()
        loss = loss + 0.0625 * drift / wanted + 0.02 * (length / before.square()).mean()
        (values.grad,) = torch.autograd.grad(loss, values)
        optimizer.step()
        with torch.no_grad():
            norms = values.norm(dim=1, keepdim=True)
            values.mul_((4 * before[:, None] / norms).clamp_max(1))
    torch.testing.assert_close(edit.left, values.detach().T, rtol=1e-6, atol=1e-8)


def test_adam_keeps_values_within_the_clamp(policy, metric):
    far = EditOptions(values=Adam(n_steps=50, clamp=0.1))
    request = Request(scene(3), Offset({"pan": 2.0}))
    edit = make_edit(policy, [request], metric, options=far, jitter=NO_JITTER)
    output = policy.run_with_cache(scene(3))[1]["decoder.0.hook_mlp_out"][0, :3].detach()
    written = edit.written_at(edit.keys)
    assert (written.norm(dim=1) <= 0.1 * output.norm(dim=1) * (1 + 1e-9)).all()
    assert edit.record.requests[0].left_over > 0.5


def test_the_essence_term_spares_the_scenes_it_is_given(policy, metric):
    one, other = scene(3), scene(11)
    moved = []
    for essence in (0.0, 100.0):
        options = EditOptions(values=Adam(essence=essence, unrelated=(other,)))
        edit = make_edit(policy, [Request(one, PAN)], metric, options=options)
        before = chunk_of(policy, other)
        with edit.apply(policy):
            moved.append(float((chunk_of(policy, other) - before)[:3].norm()))
    assert moved[1] < 0.5 * moved[0]


# ── cost ─────────────────────────────────────────────────────────────────────────────────────


def test_a_step_costs_a_five_hundredth_of_a_forward_and_backward():
    """Counted, not timed: operations of the bundled policy, and of one that is LeRobot's size."""
    model = HookedACT.from_pretrained("so101-pick-cube")
    config = model.config
    observation = {c.key: torch.zeros(3, c.height, c.width) for c in config.cameras}
    one = Scene(observation | {"observation.state": torch.zeros(6)})
    runs = MLPRuns.of(model, MLPSite("decoder.0"), [one])
    at = torch.arange(config.n_action_steps)
    rest = runs.rest.at(torch.zeros_like(at), at)
    written = runs.output[0, at][:, None].clone().requires_grad_()
    with FlopCounterMode(display=False) as step:
        torch.autograd.grad(rest(written).square().sum(), written)
    with FlopCounterMode(display=False) as whole:
        model(one).square().sum().backward()
    assert step.get_total_flops() * 500 < whole.get_total_flops()
