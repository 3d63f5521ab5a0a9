"""Path patching against three runs with plain hooks, and a planted circuit."""

import json
import random

import pytest
import torch
from relay import relay_policy

from actlens.errors import HookNameError, InterventionError
from actlens.interventions import Constant, Edit, FromScene, Path, Steering, run_paths, run_scene
from actlens.metrics import project
from actlens.scene import Scene
from actlens.sites import Site

ACTIONS = "hook_actions_normalized"
CLEAN = FromScene("clean")


def components(model):
    """What each attention and MLP writes, with the points inside it."""
    config = model.config
    blocks = [f"encoder.{i}" for i in range(config.n_encoder_layers)]
    blocks += [f"decoder.{i}" for i in range(config.n_decoder_layers)]
    for block in blocks:
        for name in ("attn", "cross_attn", "mlp"):
            write = f"{block}.hook_{name}_out"
            if write in model.hook_dict:
                yield write, f"{block}.{name}."


def three_runs(model, scene, path, donors):
    """The referee: senders edited with components held, then their receivers' values put in."""
    _, base = model.run_with_cache(scene, names_filter=lambda name: not name.startswith("vae."))

    def hold(activation, hook, sites=()):
        kept = base[hook.name].clone()
        for site in sites:
            kept[hook.index(site.where)] = activation[hook.index(site.where)]
        return kept

    def send(activation, hook, edits):
        for edit in edits:
            index = hook.index(edit.site.where)
            activation[index] = edit.apply(base[hook.name], hook, donors)[index]
        return activation

    hooks, senders, through = [], {}, {}
    for edit in path.senders:
        senders.setdefault(edit.site.name, []).append(edit)
    for site in path.through:
        through.setdefault(site.name, []).append(site)
    for write, prefix in components(model):
        inside = lambda name, w=write, p=prefix: name == w or name.startswith(p)
        if any(map(inside, through)):
            for name in filter(inside, through):
                if all(site.where for site in through[name]):
                    hooks.append((name, lambda x, hook, s=through[name]: hold(x, hook, s)))
        elif any(map(inside, senders)):
            reads = ["hook_pre"] if "mlp" in prefix else ["hook_q", "hook_k", "hook_v"]
            hooks += [(prefix + name, hold) for name in reads]
        else:
            hooks.append((write, hold))
    if path.freeze_norms:
        scales = [n for n in model.hook_dict if n.endswith("hook_scale") and "vae" not in n]
        _, kept = model.run_with_cache(scene, names_filter=scales)
        hooks += [(name, lambda x, hook: kept[hook.name].clone()) for name in scales]
    hooks += [(name, lambda x, hook, e=edits: send(x, hook, e)) for name, edits in senders.items()]
    receivers = [site.name for site in path.receivers]
    with model.hooks(fwd_hooks=hooks):
        _, sent = model.run_with_cache(scene, names_filter=receivers)

    def receive(activation, hook, site):
        index = hook.index(site.where)
        activation[index] = sent[hook.name][index]
        return activation

    last = [(s.name, lambda x, hook, s=s: receive(x, hook, s)) for s in path.receivers]
    with model.hooks(fwd_hooks=last):
        _, cache = model.run_with_cache(scene, names_filter=ACTIONS)
    return cache[ACTIONS]


def some_paths(model, rng, n):
    """Random senders before random receivers, through random components and parts of them."""
    layers, heads = model.config.n_encoder_layers, model.config.n_heads
    tokens = len(model.tokens)
    layer = lambda: rng.randrange(layers)
    token = lambda: {"token": rng.randrange(tokens)}
    sender = lambda: rng.choice(
        [
            Site("embed.hook_tokens", token()),
            Site(f"encoder.{layer()}.attn.hook_z", {"head": rng.randrange(heads)}),
            Site(f"encoder.{layer()}.mlp.hook_post", {"neuron": rng.randrange(20)}),
            Site(f"encoder.{layer()}.hook_resid_pre", token()),
            Site(f"encoder.{layer()}.hook_mlp_out"),
            Site(f"encoder.{layer()}.attn.hook_v", token()),
        ]
    )
    last = model.config.n_decoder_layers - 1
    receiver = lambda: rng.choice(
        [
            Site(f"encoder.{layers - 1}.attn.hook_q", {"head": rng.randrange(heads)}),
            Site(f"encoder.{layers - 1}.attn.hook_v"),
            Site(f"encoder.{layers - 1}.mlp.hook_pre"),
            Site("encoder.hook_out", token()),
            Site("decoder.0.cross_attn.hook_k"),
            Site("decoder.0.cross_attn.hook_v", {"head": rng.randrange(heads)}),
            Site(f"decoder.{last}.mlp.hook_pre"),
            Site(ACTIONS, {"chunk": slice(0, 2)}),
        ]
    )
    passage = lambda: rng.choice(
        [
            Site(f"encoder.{layer()}.hook_attn_out"),
            Site(f"encoder.{layer()}.hook_mlp_out", token()),
            Site(f"encoder.{layer()}.attn.hook_z", {"head": rng.randrange(heads)}),
            Site(f"encoder.{layer()}.mlp.hook_post", {"neuron": slice(0, 9)}),
            Site("decoder.0.hook_cross_attn_out"),
            Site("decoder.0.cross_attn.hook_z", {"head": (0, 1)}),
        ]
    )
    for _ in range(n):
        width = model.config.d_model
        steer = Steering(tuple(rng.gauss(0, 1) for _ in range(width)))
        site = sender()
        source = rng.choice([CLEAN, Constant(0.2)])
        if site.name.endswith(("tokens", "resid_pre", "mlp_out")):
            source = rng.choice([source, steer])
        senders = [Edit(site, source)]
        senders += [Edit(sender(), CLEAN) for _ in range(rng.choice([0, 0, 1]))]
        yield Path(
            tuple(senders),
            tuple(receiver() for _ in range(rng.choice([1, 1, 2]))),
            tuple(passage() for _ in range(rng.choice([0, 1, 3]))),
            freeze_norms=rng.random() < 0.3,
        )


def test_paths_equal_three_hooked_runs(policy, scenes, runs):
    paths = list(some_paths(policy, random.Random(0), 60))
    donors = {"clean": runs[1]}
    effects = run_paths(policy, runs[0], paths, donors)
    for i, path in enumerate(paths):
        expected = three_runs(policy, scenes[0], path, donors)
        torch.testing.assert_close(
            effects.actions[i : i + 1], expected, rtol=1e-9, atol=1e-10, msg=str(path)
        )
    assert (effects.output_change > 1e-6).mean() > 0.3, "many of these paths carry something"
    dead = effects.changed == 0
    assert (effects.output_change[dead] < 1e-12).all()


def test_paths_of_one_kind_share_a_batch_and_a_budget_only_splits_it(act, observe):
    base, clean = (run_scene(act, observe(act, rows=1, seed=s)) for s in (0, 1))
    receivers = (Site("decoder.0.cross_attn.hook_v"),)
    through = (Site("encoder.1.hook_attn_out"),)
    paths = [
        Path((Edit(Site("embed.hook_tokens", {"token": i}), CLEAN),), receivers, through)
        for i in range(len(act.tokens))
    ]
    whole = run_paths(act, base, paths, {"clean": clean})
    steps = []
    small = run_paths(
        act, base, paths, {"clean": clean}, memory_budget=80_000, advance=steps.append
    )
    assert len(steps) > 1
    assert sum(steps) == len(paths)
    torch.testing.assert_close(small.actions, whole.actions, rtol=1e-12, atol=1e-13)


@pytest.fixture(scope="module")
def relay():
    """The planted circuit, and two scenes that differ in the state."""
    model = relay_policy()
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
    env = draw()
    scenes = [
        Scene({"observation.state": draw(), "observation.environment_state": env}) for _ in range(2)
    ]
    return model, *(run_scene(model, scene) for scene in scenes)


@pytest.mark.parametrize(
    ("receiver", "through", "share"),
    [
        ("encoder.0.attn.hook_v", [], 1.0),
        ("encoder.0.attn.hook_k", [], 0.0),
        ("decoder.0.cross_attn.hook_v", [], 0.0),
        ("decoder.0.cross_attn.hook_v", ["encoder.0.hook_attn_out"], 1.0),
        ("decoder.0.cross_attn.hook_v", ["encoder.0.attn.hook_z[head=0]"], 1.0),
        ("decoder.0.cross_attn.hook_v", ["encoder.0.attn.hook_z[head=1]"], 0.0),
        ("decoder.0.cross_attn.hook_v", ["encoder.1.hook_attn_out", "encoder.0.hook_mlp_out"], 0.0),
        ("hook_actions_normalized", ["encoder.0.hook_attn_out"], 0.0),
        (
            "hook_actions_normalized",
            ["encoder.0.hook_attn_out", "decoder.0.hook_cross_attn_out"],
            1.0,
        ),
    ],
)
def test_the_relays_only_path_is_found(relay, receiver, through, share):
    model, base, clean = relay
    path = Path(
        (Edit(model.site("embed.hook_tokens[state]"), CLEAN),),
        (model.site(receiver),),
        tuple(map(model.site, through)),
    )
    effects = run_paths(model, base, [path], {"clean": clean})
    found = project(effects.actions, base.actions, clean.actions).share
    assert float(found) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("freeze_norms", [True, False])
def test_with_frozen_norms_paths_add_up_and_otherwise_not(act, observe, freeze_norms):
    base, clean = (run_scene(act, observe(act, rows=1, seed=s)) for s in (0, 1))
    edits = [Edit(Site("encoder.0.attn.hook_z", {"head": h}), CLEAN) for h in range(4)]
    sets = [*((edit,) for edit in edits), tuple(edits)]
    # With the actions as receiver nothing reacts afterwards: the sum is of what was sent.
    through = (Site("decoder.0.hook_cross_attn_out"),)
    pattern = (Edit(Site("decoder.0.cross_attn.hook_pattern"), Constant(0.1)),)
    held = run_paths(
        act, base, [Path((*pattern, *s), (Site(ACTIONS),), through, freeze_norms) for s in sets],
        {"clean": clean},
    )  # fmt: skip
    alone = run_paths(
        act, base, [Path(pattern, (Site(ACTIONS),), through, freeze_norms)], {"clean": clean}
    )
    moved = held.actions - alone.actions
    gap = (moved[:4].sum(0) - moved[4]).abs().max() / moved[4].abs().max()
    assert gap < 1e-9 if freeze_norms else gap > 1e-3


def test_a_path_survives_being_saved_as_json():
    path = Path(
        (Edit(Site("encoder.0.hook_resid_pre", {"token": (3, 1)}), CLEAN),),
        (Site("decoder.0.cross_attn.hook_v"), Site("decoder.0.cross_attn.hook_k", {"head": 1})),
        (Site("encoder.1.attn.hook_z", {"head": 2}),),
        freeze_norms=True,
    )
    assert Path.from_json(json.loads(json.dumps(path.to_json()))) == path
    with pytest.raises(InterventionError, match=r"no saved path.*receivers"):
        Path.from_json({"senders": path.to_json()["senders"]})


def test_what_is_no_path_is_refused(act, observe):
    base = run_scene(act, observe(act, rows=1))
    sender = (Edit(Site("embed.hook_tokens", {"token": 0}), Constant()),)
    with pytest.raises(InterventionError, match="a sender and a receiver"):
        Path(sender, ())
    go = lambda path: run_paths(act, base, [path])
    with pytest.raises(InterventionError, match="no part of an attention or MLP"):
        go(Path(sender, (Site("encoder.hook_out"),), (Site("encoder.1.hook_resid_pre"),)))
    with pytest.raises(HookNameError, match="is not a hook point"):
        go(Path(sender, (Site("encoder.9.hook_out"),)))
    with pytest.raises(InterventionError, match="leave 'batch' out"):
        go(Path(sender, (Site("encoder.hook_out", {"batch": 0}),)))
    with pytest.raises(InterventionError, match="Raise memory_budget"):
        run_paths(act, base, [Path(sender, (Site("encoder.hook_out"),))], memory_budget=1)
