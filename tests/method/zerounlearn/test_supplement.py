"""The ablations of the paper's supplement, and two options of the published code, against plain computations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import reference as plain
from tests.helpers import FACTS, hparams_for, tiny
from zerounlearn.data.corpora import Corpus, with_statements
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError
from zerounlearn.method.zerounlearn.config import ZeroUnlearn, ZeroUnlearnGD
from zerounlearn.method.zerounlearn.method import find_layout, unlearn
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.tokens import continuation
from zerounlearn.statistics.collect import second_moments

TEXTS = [f"In the year {i} the weather of France was fine and people in Lisbon said so." for i in range(40)]
CORPUS = Corpus("tiny", lambda: TEXTS)
KEPT = [Request.of("The capital of {} is", "Germany", "Berlin"), Request.of("{} was painted by", "Guernica", "Picasso")]
STATEMENTS = ["The capital of Germany is Berlin", "Guernica was painted by Picasso"]
NAME = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def hp(tmp_path: Path) -> ZeroUnlearn:
    return hparams_for([1], mom2_n_samples=90, stats_dir=str(tmp_path), mom2_dtype="float64", regularization_lam=3.0)


def weight(model, layer: int = 1) -> Tensor:
    return model.get_parameter(NAME.format(layer)).detach().clone()


def columns(tokenizer, facts: list[Request], name: str, prefixes: list[str], *, inputs: bool) -> Tensor:
    model = tiny("llama", len(tokenizer))
    return torch.stack(
        [plain.mean_at_subject(model, tokenizer, f.prompt, f.subject, prefixes, name, inputs=inputs) for f in facts]
    ).mT


@pytest.mark.parametrize(
    ("changes", "projects", "corpus"),
    [
        ({"orthogonality": "remap-only"}, False, CORPUS),
        ({"mom2_adjustment": False}, True, None),
        ({"orthogonality": "remap-only", "mom2_adjustment": False}, False, None),
    ],
    ids=["without orthogonality", "without utility", "without either"],
)
def test_an_ablation_is_the_dense_formula_without_that_term(
    changes: dict[str, object], projects: bool, corpus: Corpus | None, small_tokenizer, hp: ZeroUnlearn
) -> None:
    """P = I where nothing is projected, no C where ordinary text is left out; in both the ridge stays."""
    model, fresh = tiny("llama", len(small_tokenizer)), tiny("llama", len(small_tokenizer))
    run = dataclasses.replace(hp, **changes)
    outcome = unlearn(model, small_tokenizer, FACTS, run, corpus)
    prefixes, module = outcome.vectors.prefixes, "model.layers.1.mlp.down_proj"
    K = columns(small_tokenizer, FACTS, module, prefixes, inputs=True)
    M = columns(small_tokenizer, FACTS, module, prefixes, inputs=False)
    h = columns(small_tokenizer, FACTS, "model.layers.1", [], inputs=False)
    W, V = weight(fresh), torch.zeros(32, 0, dtype=torch.float64)
    if projects:
        V = outcome.vectors.V[1].mT
    C = torch.zeros(48, 48, dtype=torch.float64)
    if corpus is not None:
        C = plain.moments(fresh, small_tokenizer, TEXTS, 1, run)[0]
    expected = plain.solve(W, C, W @ C, K, M, outcome.vectors.z.mT - h, V, run)
    assert torch.linalg.norm(expected - W) > 1e-3 * torch.linalg.norm(W)
    assert torch.linalg.norm(weight(model) - expected) < 1e-6 * torch.linalg.norm(expected - W)
    assert outcome.layers[0].rank == (len(FACTS) if projects else 0)


def test_without_orthogonality_no_sensitive_vector_is_looked_for(small_tokenizer, hp: ZeroUnlearn) -> None:
    run = dataclasses.replace(hp, orthogonality="remap-only")
    outcome = unlearn(tiny("llama", len(small_tokenizer)), small_tokenizer, FACTS, run, CORPUS)
    assert outcome.vectors.V == {}
    assert outcome.layers[0].leakage is None


def test_remapping_alone_brings_nothing_back_that_an_earlier_edit_took_away(small_tokenizer, hp: ZeroUnlearn) -> None:
    model = tiny("llama", len(small_tokenizer))
    unlearn(model, small_tokenizer, FACTS[:1], hp, CORPUS)
    Q = Lineage.of(model).traces[NAME.format(1)][0].directions.double()
    before = weight(model)
    unlearn(model, small_tokenizer, FACTS[1:], dataclasses.replace(hp, orthogonality="remap-only"), CORPUS)
    assert (weight(model) - before).norm() > 1e-3 * before.norm()
    assert (Q.mT @ weight(model)).norm() < 1e-6 * weight(model).norm()


@pytest.mark.parametrize("sensitive_from", ["original", "edited"])
def test_use_h_finds_what_the_block_puts_out(
    sensitive_from: str, small_tokenizer, hp: ZeroUnlearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = tiny("llama", len(small_tokenizer))
    found: list[Tensor] = []
    real = unlearn.__globals__["orthonormal_basis"]

    def basis(V: Tensor, **options: float) -> Tensor:
        found.append(V)
        return real(V, **options)

    monkeypatch.setitem(unlearn.__globals__, "orthonormal_basis", basis)
    for use_h in (True, False):
        run = dataclasses.replace(hp, use_h=use_h, sensitive_from=sensitive_from)
        outcome = unlearn(tiny("llama", len(small_tokenizer)), small_tokenizer, FACTS, run, CORPUS)
        expected = [
            plain.compute_z(
                fresh, small_tokenizer, f.prompt, f.subject, continuation(small_tokenizer, f.prompt, f.answer),
                outcome.vectors.prefixes, 1, run, at_projection=not use_h,
            )
            for f in FACTS
        ]  # fmt: skip
        assert_close(found.pop(0), torch.stack(expected), rtol=1e-6, atol=1e-8)


def test_add_retain_takes_the_statements_among_the_texts(small_tokenizer, hp: ZeroUnlearn) -> None:
    model = tiny("llama", len(small_tokenizer))
    C = second_moments(find_layout(model, hp), small_tokenizer, hp, with_statements(CORPUS, KEPT))[1]
    assert_close(C, plain.moments(model, small_tokenizer, [*STATEMENTS, *TEXTS], 1, hp)[0])
    without = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)[1]
    assert_close(without, plain.moments(model, small_tokenizer, TEXTS, 1, hp)[0])
    assert (C - without).norm() > 1e-3 * without.norm()


def test_add_retain_is_an_edit_over_those_texts(small_tokenizer, hp: ZeroUnlearn) -> None:
    """With `retain_KKT_lam` 0 the retain set plays no other part."""
    run = dataclasses.replace(hp, retain_KKT_lam=0.0)
    weights = []
    for one, corpus, retain in (
        (dataclasses.replace(run, add_retain=True), CORPUS, KEPT),
        (run, Corpus("by hand", lambda: [*STATEMENTS, *TEXTS]), []),
        (run, CORPUS, KEPT),
    ):
        model = tiny("llama", len(small_tokenizer))
        unlearn(model, small_tokenizer, FACTS, one, corpus, retain=retain)
        weights.append(weight(model))
    change = (weights[1] - weight(tiny("llama", len(small_tokenizer)))).norm()
    assert (weights[0] - weights[1]).norm() < 1e-9 * change
    assert (weights[0] - weights[2]).norm() > 1e-6 * change


def test_statements_join_a_corpus_that_is_not_copied() -> None:
    reads: list[int] = []

    class Many(list[str]):
        def __getitem__(self, at):  # type: ignore[override]
            reads.append(at)
            return super().__getitem__(at)

    joined = with_statements(Corpus("many", lambda: Many(TEXTS)), [*KEPT, Request("", "Oslo", " is", answer="")])
    texts = joined.texts()
    assert reads == []
    assert [texts[0], texts[2], texts[3], texts[-1]] == [STATEMENTS[0], "Oslo is", TEXTS[0], TEXTS[-1]]
    assert texts[1:4] == [STATEMENTS[1], "Oslo is", TEXTS[0]]
    assert len(texts) == len(TEXTS) + 3
    with pytest.raises(IndexError):
        texts[len(texts)]
    assert joined.name != "many"
    assert joined.name != with_statements(CORPUS, KEPT[:1]).name, "the cache must not take one for the other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orthogonality": "remap-only", "projection_eps": 0.01}, "projection_eps=0.01: only orthogonality='output'"),
        ({"orthogonality": "remap-only", "retain_exactly": True}, "retain_exactly=True.*'remap-only'"),
        ({"orthogonality": "remap-only", "use_h": True}, "use_h=True"),
        ({"preset": "specific", "use_h": True}, "use_h=True"),
        ({"add_retain": True, "mom2_adjustment": False}, "add_retain=True.*mom2_adjustment=False"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroUnlearn(model_name="x", layers=[1], **changes)


@pytest.mark.parametrize("kind", [ZeroUnlearn, ZeroUnlearnGD])
def test_add_retain_needs_a_retain_set(kind: type[ZeroUnlearn], small_tokenizer, hp: ZeroUnlearn) -> None:
    method = kind(model_name="x", layers=[1], add_retain=True)
    method.check_retain(True)
    method.replace(retain_set="auto").check_retain(False)
    with pytest.raises(ConfigError, match="add_retain=True: there is no retain set"):
        method.check_retain(False)
    with pytest.raises(ConfigError, match="add_retain=True: there is no retain set"):
        unlearn(
            tiny("llama", len(small_tokenizer)),
            small_tokenizer,
            FACTS,
            dataclasses.replace(hp, add_retain=True),
            CORPUS,
        )
