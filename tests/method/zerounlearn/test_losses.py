"""Losses and their slopes against autograd through the whole vocabulary at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from tests.helpers import hparams_for, tiny
from zerounlearn.method.zerounlearn import losses
from zerounlearn.method.zerounlearn.losses import log_probabilities, read_losses
from zerounlearn.method.zerounlearn.method import find_layout

READS, TARGETS, VOCABULARY = 11, 7, 40


@pytest.mark.parametrize("positions", [1, 3, 100])
@pytest.mark.parametrize("weight", [0.0, 3.0])
@pytest.mark.parametrize("kl_of", ["after", "before"])
def test_slopes_are_autograds(positions: int, weight: float, kl_of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "good_positions", lambda device, vocabulary: positions)
    layout = find_layout(tiny("llama", VOCABULARY), hparams_for([1]))
    layout.model.requires_grad_(False)
    g = torch.Generator().manual_seed(positions)
    hidden = torch.randn(READS, layout.model.config.hidden_size, generator=g, dtype=torch.float64, requires_grad=True)
    token = torch.randint(VOCABULARY, (TARGETS,), generator=g)
    unlikely = weight * (torch.arange(TARGETS) % 2).double()
    reference = torch.randn(READS - TARGETS, VOCABULARY, generator=g, dtype=torch.float64).log_softmax(-1)
    upstream = torch.randn(READS, generator=g, dtype=torch.float64)

    found = read_losses(layout, hidden, token, unlikely, reference, kl_of=kl_of)
    slope = torch.autograd.grad(found @ upstream, hidden)[0]

    log_p = layout.logits(hidden).log_softmax(-1)
    own = log_p[:TARGETS].gather(1, token[:, None])[:, 0]
    targets = torch.where(unlikely > 0, -unlikely * torch.log1p(-own.exp()), -own)
    after, before = log_p[TARGETS:], reference
    kept = F.kl_div(*((before, after) if kl_of == "after" else (after, before)), reduction="none", log_target=True).sum(
        -1
    )
    expected = torch.cat([targets, kept])
    assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # the final norm works in float32
    assert_close(slope, torch.autograd.grad(expected @ upstream, hidden)[0], rtol=1e-5, atol=1e-7)
    assert_close(log_probabilities(layout, hidden), log_p, rtol=1e-10, atol=1e-10)


def test_without_gradients_nothing_is_kept_for_going_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = find_layout(tiny("llama", VOCABULARY), hparams_for([1]))
    hidden = torch.randn(3, layout.model.config.hidden_size, generator=torch.Generator().manual_seed(0)).double()
    token = torch.tensor([1, 2, 3])
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a slope was taken"))
    with torch.no_grad():
        found = read_losses(layout, hidden.requires_grad_(), token, torch.zeros(3))
    assert not found.requires_grad
    assert_close(found, -layout.logits(hidden.detach()).log_softmax(-1)[range(3), token], rtol=1e-10, atol=1e-10)
