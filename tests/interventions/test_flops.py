"""The work that patches cost, counted: the same on every machine, whatever else it does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from actlens.config import STATE_KEY, ACTConfig, Camera
from actlens.interventions import (
    Constant,
    FromScene,
    Intervention,
    each_neuron_alone,
    run,
    run_scene,
)
from actlens.model.act import HookedACT
from actlens.sites import Site


def flops(work):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def seed_size():
    """Two 480x640 cameras, 602 tokens of width 512, MLPs of 3,200 neurons, a chunk of 100."""
    cameras = tuple(Camera(f"observation.images.{name}", 480, 640) for name in ("top", "lateral"))
    config = ACTConfig(
        cameras=cameras, action_dim=6, state_dim=6, d_model=512, d_mlp=3200, chunk=100,
        n_action_steps=100, n_encoder_layers=3, use_vae=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HookedACT(config).eval()
    scene = {camera.key: torch.rand(3, 480, 640) for camera in cameras}
    base = run_scene(model, scene | {STATE_KEY: torch.randn(6)})
    naive = flops(lambda: model(scene | {STATE_KEY: torch.zeros(6)}))
    return model, base, naive


def test_a_token_sweep_takes_a_seventh_of_the_work_of_whole_forwards(seed_size):
    model, base, naive = seed_size
    assert len(model.tokens) == 602
    streams = [*(f"encoder.{i}.hook_resid_pre" for i in range(3)), "encoder.hook_out"]
    costs = []
    for stream in streams:
        patches = [
            Intervention.at(Site(stream, {"token": token}), Constant(0.1))
            for token in (5, 300, 601)
        ]
        run(model, base, patches[:1])  # what belongs to the scene is made once
        costs.append(flops(lambda p=patches: run(model, base, p)) / len(patches))
    assert len(streams) * naive / sum(costs) >= 7
    assert naive / costs[-1] > 80, "tokens of the encoder's output cost the decoder's tail alone"


def test_ablating_every_neuron_of_the_decoder_takes_less_work_than_one_forward(seed_size):
    model, base, naive = seed_size
    cost = flops(lambda: each_neuron_alone(model, base, Constant(0.0)))
    assert 3200 * naive / cost >= 10_000
    ablations = [
        Intervention.at(Site("decoder.0.mlp.hook_post", {"neuron": n}), Constant())
        for n in range(3200)
    ]
    as_interventions = flops(lambda: run(model, base, ablations))
    assert as_interventions < 3 * cost, "each batch of them reads the stream again"


def test_what_an_edit_cannot_reach_costs_nothing(seed_size):
    model, base, _ = seed_size
    head = model.config.chunk * 2 * 512 * 6
    last = Intervention.at(Site("decoder.0.hook_normalized_resid_post"), FromScene("base"))
    assert flops(lambda: run(model, base, [last], {"base": base})) <= head
    vector = Intervention.at(Site("decoder.0.hook_mlp_out", {"query": 7}), FromScene("base"))
    assert flops(lambda: run(model, base, [vector], {"base": base})) <= head / 100
