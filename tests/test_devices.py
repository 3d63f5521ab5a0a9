"""Nothing stays on the CPU: the network on a CUDA device that is only pretended.

torch's FakeTensorMode computes shapes and devices without any numbers, and raises where tensors of
two devices meet, as a real GPU would.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from actlens.config import ACTION_KEY, STATE_KEY
from actlens.model.act import HookedACT
from actlens.model.action_queue import ActionQueue, TemporalEnsemble
from actlens.model.embed import Inputs
from actlens.normalization import Affine, NormalizationMode, Normalizer

GPU = torch.device("cuda", 0)
ROWS = 2


@pytest.fixture
def pretended():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def on_gpu(module):
    """`module.to(GPU)`: fake parameters cannot be moved in place."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    moved = tensor.detach().to(GPU)
                    store[name] = torch.nn.Parameter(moved) if store is part._parameters else moved
    return module


def inputs_on(device, config):
    empty = lambda *shape: torch.empty(ROWS, *shape, device=device)
    return Inputs(
        tuple(empty(3, camera.height, camera.width) for camera in config.cameras),
        empty(config.state_dim),
        None,
        ROWS,
    )


@pytest.fixture
def model(make_config, pretended):
    return on_gpu(HookedACT(make_config(n_decoder_layers=2))).eval()


def chunks(config, dtype=torch.float32):
    return torch.empty(ROWS, config.chunk, config.action_dim, device=GPU, dtype=dtype)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_every_activation_is_where_the_weights_are(model, fused, training):
    model.train(training).fused_attention = fused
    inputs = inputs_on(GPU, model.config)
    is_pad = torch.zeros(ROWS, model.config.chunk, device=GPU, dtype=torch.bool)
    store, hooks, _ = model.get_caching_hooks("*")
    with model.hooks(hooks):
        mu, _ = model.vae.posterior(chunks(model.config), is_pad, inputs.state)
        model.predict(inputs, mu)
        actions = model.predict(inputs)
    assert actions.device == GPU
    assert len(store) > 150 - 60 * fused
    assert {value.device for value in store.values()} == {GPU}


def test_two_devices_would_be_noticed(model):
    """The control for the tests above."""
    inputs = inputs_on("cpu", model.config)
    with pytest.raises(RuntimeError, match="two devices"):
        model.predict(inputs)


@pytest.mark.parametrize("make", [lambda: ActionQueue(2), lambda: TemporalEnsemble(0.1)])
def test_queued_actions_stay_on_the_device(make, model):
    queue = make()
    for _ in range(7):
        if queue.needs_chunk:
            queue.push(chunks(model.config))
        assert queue.pop().device == GPU


@pytest.mark.parametrize("mode", list(NormalizationMode))
def test_normalisation_moves_with_the_model(mode, pretended):
    affine = Affine(mode, torch.zeros(3), torch.ones(3), torch.ones(3), 0.5)
    normalizer = on_gpu(Normalizer({ACTION_KEY: affine}))
    x = torch.empty(5, 3, device=GPU)
    assert normalizer.normalize(ACTION_KEY, x).device == GPU
    assert normalizer.unnormalize(ACTION_KEY, x).device == GPU


def test_a_step_of_training_computes_where_the_network_is(make_config, pretended):
    from actlens.train import TrainConfig, TrainingData, losses

    config = make_config()
    affine = lambda *shape: Affine(
        NormalizationMode.MEAN_STD, torch.zeros(shape), torch.ones(shape), torch.ones(shape)
    )
    shapes = {camera.key: (3, 1, 1) for camera in config.cameras}
    shapes |= {STATE_KEY: (config.state_dim,), ACTION_KEY: (config.action_dim,)}
    statistics = Normalizer({key: affine(*shape) for key, shape in shapes.items()})
    model = on_gpu(HookedACT(config, statistics, frozen_norm=True)).train()
    n = 12
    data = TrainingData(
        tuple(torch.zeros(n, 3, c.height, c.width, dtype=torch.uint8) for c in config.cameras),
        torch.zeros(n, config.state_dim),
        torch.zeros(n, config.action_dim),
        np.full(n, n - 1),
    )
    asked = TrainConfig("made up", None, chunk=config.chunk, bf16=False)
    loss = losses(model, data, np.array([3, 8]), asked)
    assert {loss.total.device, loss.l1.device, loss.kl.device} == {GPU}
