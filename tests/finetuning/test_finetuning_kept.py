"""A step on kept activations is the step of whole forwards, and only the part can move."""

import pytest
import torch

from actlens.finetuning import (
    Behind,
    FinetuningError,
    KeptScenes,
    cross_attention,
    decoder_mlp,
    encoder,
    everything,
    head,
    output_weights,
    size,
)
from actlens.scene import Scene, stack
from tests.interventions.conftest import ARCHITECTURES, CAMERAS, small_trunk

MAKE = (decoder_mlp, cross_attention, head, encoder, everything, output_weights)


def recorded(model, observe, n=5):
    """Random scenes with random demonstrations, some of which end early."""
    generator = torch.Generator().manual_seed(5)
    rows = observe(model, rows=n, seed=3)
    shape = (model.config.chunk, model.config.action_dim)
    scenes = []
    for i in range(n):
        pad = torch.arange(model.config.chunk) >= model.config.chunk - i % 3
        scenes.append(
            Scene(
                {key: value[i] for key, value in rows.items()},
                torch.randn(shape, generator=generator),
                pad,
                episode=i,
            )
        )
    return scenes


def whole_forward_loss(model, scenes):
    """The masked L1 loss as it stands in `actlens.train`, of a plain forward."""
    predicted = model.predict(model.prepare(stack(scenes)))
    target = torch.stack([scene.action for scene in scenes]).to(predicted)
    target = model.normalizer.normalize("action", target)
    pad = torch.stack([scene.action_is_pad for scene in scenes])
    return ((predicted - target).abs() * ~pad[..., None]).mean()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("make", MAKE, ids=lambda make: make.__name__)
def test_loss_and_gradient_are_those_of_the_whole_forward(make, architecture, new_model, observe):
    model = new_model(cameras=CAMERAS, **ARCHITECTURES[architecture])
    model.embed.backbone = small_trunk()
    model = model.double().eval()
    part, scenes = make(model), recorded(model, observe)
    kept = KeptScenes.of(model, scenes, [part])
    weights = {k: v.clone().requires_grad_() for k, v in part.weights(model).items()}
    from actlens.finetuning.training import loss

    cached = loss(Behind(model, part), weights, kept)
    gradients = torch.autograd.grad(cached, list(weights.values()), allow_unused=True)
    plain = whole_forward_loss(model, scenes)
    expected = torch.autograd.grad(
        plain, [dict(model.named_parameters())[name] for name in weights], allow_unused=True
    )
    assert cached.item() == pytest.approx(plain.item(), rel=1e-10)
    for ours, theirs in zip(gradients, expected, strict=True):
        theirs = torch.zeros(()) if theirs is None else theirs
        ours = torch.zeros_like(theirs) if ours is None else ours
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_what_is_kept_is_no_more_than_what_a_part_reads(teacher, scenes):
    kept = KeptScenes.of(teacher, scenes, [decoder_mlp(teacher)])
    assert set(kept.activations) == {"decoder.0.hook_normalized_resid_mid_cross"}
    both = KeptScenes.of(teacher, scenes, [head(teacher), encoder(teacher, 1)])
    assert "encoder.1.hook_resid_pre" in both.activations
    assert "embed.hook_tokens" not in both.activations


def test_parts_count_their_parameters(teacher):
    d, mlp, joints = teacher.config.d_model, teacher.config.d_mlp, teacher.config.action_dim
    assert size(decoder_mlp(teacher).weights(teacher)) == 2 * d * mlp + mlp + d
    assert size(cross_attention(teacher).weights(teacher)) == 4 * d * d + 4 * d
    assert size(head(teacher).weights(teacher)) == 2 * d + d * joints + joints
    assert size(output_weights(teacher).weights(teacher)) == d * mlp
    encoder_size = size(encoder(teacher).weights(teacher))
    assert encoder_size == sum(p.numel() for p in teacher.encoder.parameters())
    behind = [teacher.encoder, teacher.decoder, teacher.ln_final, teacher.action_head]
    n = sum(p.numel() for module in behind for p in module.parameters())
    assert size(everything(teacher).weights(teacher)) == n


def test_scenes_are_taken_by_episode(teacher, scenes):
    kept = KeptScenes.of(teacher, scenes, [encoder(teacher)])
    some = kept.of_episodes([1, 4])
    assert [scene.episode for scene in some.scenes] == [1, 1, 4, 4]
    name = "encoder.0.hook_resid_pre"
    assert torch.equal(some.activations[name], kept.activations[name][[2, 3, 8, 9]])
    assert torch.equal(torch.cat([b.target for b in kept.batches(5)]), kept.target)


def test_mistakes_are_told(teacher, scenes, own_teacher):
    with pytest.raises(FinetuningError, match="no scene"):
        KeptScenes.of(teacher, [], [head(teacher)])
    with pytest.raises(FinetuningError, match="0 demonstrated actions"):
        KeptScenes.of(teacher, [Scene(scenes[0].observation)], [head(teacher)])
    with pytest.raises(FinetuningError, match="blocks 0 to 1, not 2"):
        encoder(teacher, 2)
    with pytest.raises(FinetuningError, match="training mode"):
        KeptScenes.of(own_teacher.train(), scenes, [head(teacher)])
