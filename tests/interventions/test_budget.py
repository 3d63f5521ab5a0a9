"""Runs within an allowed error, against exact ones."""

import numpy as np
import pytest
import torch

from actlens.errors import InterventionError
from actlens.interventions import FromScene, Intervention, run, run_within
from actlens.sites import Site


@pytest.fixture(scope="module")
def token_patches(policy):
    streams = [f"encoder.{i}.hook_resid_pre" for i in range(policy.config.n_encoder_layers)]
    return [
        Intervention.at(Site(name, {"token": token}), FromScene("clean"))
        for name in [*streams, "encoder.hook_out"]
        for token in range(len(policy.tokens))
    ]


@pytest.fixture(scope="module")
def exact(policy, runs, token_patches):
    return run(policy, runs[0], token_patches, {"clean": runs[1]})


def errors(effects, exact, base):
    return (effects.actions - exact.actions).flatten(1).norm(dim=1) / base.actions.norm()


def test_a_tolerance_leaves_tokens_out_and_says_how_much(policy, runs, token_patches, exact):
    loose = run(policy, runs[0], token_patches, {"clean": runs[1]}, tolerance=0.02)
    assert (loose.left_out > 0).any()
    error = errors(loose, exact, runs[0]).numpy()
    assert error.max() > 0
    assert error[loose.left_out == 0].max() < 1e-12, "nothing left out, nothing wrong"
    assert (exact.left_out == 0).all()


def test_the_error_vanishes_with_the_tolerance(policy, runs, token_patches, exact):
    largest = [
        errors(run(policy, runs[0], token_patches, {"clean": runs[1]}, tolerance=t), exact, runs[0])
        .max()
        .item()
        for t in (1e-1, 1e-2, 1e-3, 1e-5)
    ]
    assert largest[-1] < 1e-5
    assert largest == sorted(largest, reverse=True)


def test_with_every_patch_audited_the_allowed_error_is_kept(policy, runs, token_patches, exact):
    n = len(token_patches)
    for allowed in (1e-2, 1e-4):
        effects, audit = run_within(
            policy, runs[0], token_patches, {"clean": runs[1]}, max_error=allowed, n_audit=2 * n
        )
        assert audit.largest <= allowed
        assert audit.n_random + audit.n_suspect == n or audit.tolerance == 0
        torch.testing.assert_close(effects.actions, exact.actions, rtol=1e-9, atol=1e-10)


def test_audited_patches_are_exact_and_the_audit_reports_their_error(
    policy, runs, token_patches, exact
):
    donors = {"clean": runs[1]}
    effects, audit = run_within(policy, runs[0], token_patches, donors, max_error=0.5, n_audit=6)
    assert (audit.n_random, audit.n_suspect) == (3, 3)
    loose = run(policy, runs[0], token_patches, donors, tolerance=audit.tolerance)
    suspects = np.argsort(-loose.left_out, kind="stable")[:3]
    error = errors(loose, exact, runs[0])
    assert audit.largest_suspect == pytest.approx(error[suspects].max().item(), rel=1e-6)
    assert errors(effects, exact, runs[0])[suspects].max() < 1e-12


def test_a_run_that_cannot_be_within_the_error_is_exact_after_all(
    policy, runs, token_patches, exact
):
    effects, audit = run_within(
        policy, runs[0], token_patches, {"clean": runs[1]}, max_error=1e-30, n_audit=8
    )
    assert audit.tolerance == 0
    torch.testing.assert_close(effects.actions, exact.actions, rtol=1e-12, atol=1e-12)


def test_progress_counts_every_patch_once(policy, runs, token_patches):
    done = []
    run_within(
        policy, runs[0], token_patches, {"clean": runs[1]}, max_error=0.01, advance=done.append
    )
    assert sum(done) == len(token_patches)


@pytest.mark.parametrize(("max_error", "n_audit"), [(0.0, 8), (-1.0, 8), (0.1, 1)])
def test_no_allowed_error_or_no_audit_is_refused(policy, runs, token_patches, max_error, n_audit):
    with pytest.raises(InterventionError, match="must be positive and n_audit"):
        run_within(policy, runs[0], token_patches, max_error=max_error, n_audit=n_audit)
