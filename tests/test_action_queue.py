"""The queue and the ensemble against their definitions; LeRobot's own is in tests/referees."""

from dataclasses import replace

import pytest
import torch

from actlens.config import ACTConfig
from actlens.model.act import HookedACT
from actlens.model.action_queue import ActionQueue, TemporalEnsemble

CONFIG = ACTConfig(
    cameras=(), action_dim=3, state_dim=4, env_state_dim=2, chunk=5, n_action_steps=3, d_model=16,
    n_heads=2, d_mlp=16, n_encoder_layers=1, use_vae=False,
)  # fmt: skip


def observation(seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation.state": torch.randn(batch, 4, generator=generator),
        "observation.environment_state": torch.randn(batch, 2, generator=generator),
    }


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HookedACT(CONFIG).eval()


def test_the_queue_answers_from_one_inference_until_it_is_empty(model):
    chunk = model.predict_action_chunk(observation(0))
    # Later observations are not looked at while the queue lasts.
    got = [model.select_action(observation(seed)) for seed in range(3)]
    assert torch.equal(torch.stack(got, 1), chunk[:, :3])


def test_reset_forgets_queued_actions(model):
    model.select_action(observation(0))
    model.reset()
    assert torch.equal(
        model.select_action(observation(1)), model.predict_action_chunk(observation(1))[:, 0]
    )


def test_hooks_know_control_step_and_inference_step(model):
    seen = []

    def note(activation, hook):
        seen.append((hook.clock.control_step, hook.clock.inference_step))

    with model.hooks(fwd_hooks=[("decoder.0.hook_mlp_out", note)]):
        for step in range(7):
            model.select_action(observation(step))
    assert seen == [(0, 0), (3, 1), (6, 2)]
    model.reset()
    with model.hooks(fwd_hooks=[("decoder.0.hook_mlp_out", note)]):
        model.select_action(observation(0))
    assert seen[-1] == (0, 0)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_the_ensemble_equals_the_weighted_mean_computed_offline(dtype, error):
    generator = torch.Generator().manual_seed(0)
    coefficient, length, ticks = 0.3, 5, 12
    chunks = torch.randn(ticks, 2, length, 3, generator=generator, dtype=dtype)
    ensemble = TemporalEnsemble(coefficient)
    for tick in range(ticks):
        ensemble.push(chunks[tick])
        got = ensemble.pop()
        # Predictions for this tick, the oldest first.
        first = max(0, tick - length + 1)
        predictions = torch.stack([chunks[t][:, tick - t] for t in range(first, tick + 1)])
        weights = torch.exp(-coefficient * torch.arange(len(predictions), dtype=torch.float64))
        mean = (weights[:, None, None] * predictions.double()).sum(0) / weights.sum()
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), mean, atol=error, rtol=error)


def test_a_policy_with_an_ensemble_runs_the_network_at_every_control_step():
    model = HookedACT(replace(CONFIG, n_action_steps=1, temporal_ensemble_coeff=0.01)).eval()
    for step in range(4):
        model.select_action(observation(step))
    assert model.clock.inference_step == model.clock.control_step == 3


def test_a_batch_is_answered_as_a_batch():
    queue = ActionQueue(2)
    queue.push(torch.arange(24.0).reshape(2, 4, 3))
    assert torch.equal(queue.pop(), torch.tensor([[0.0, 1, 2], [12, 13, 14]]))
    assert not queue.needs_chunk
    queue.pop()
    assert queue.needs_chunk
