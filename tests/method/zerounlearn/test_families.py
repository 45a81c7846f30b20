"""Every family, as a random model of its own class, through the whole path: equal to the plain way, exact, undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests import reference as plain
from tests.helpers import FACTS, PREFIXES, hparams_for, tiny
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import LayoutError
from zerounlearn.method.zerounlearn import method as module
from zerounlearn.method.zerounlearn.config import ZeroUnlearn, ZeroUnlearnGD
from zerounlearn.method.zerounlearn.method import find_layout, unlearn
from zerounlearn.method.zerounlearn.vectors import Problem, is_additive, optimise
from zerounlearn.model.families import families, templates_of
from zerounlearn.model.hooks import inputs_of
from zerounlearn.model.tokens import continuation, locate

pytestmark = pytest.mark.integration  # the whole path of a method, many times
TEXTS = [f"In the year {i} the weather of France was fine and people in Lisbon said so." for i in range(60)]
CORPUS = Corpus("tiny", lambda: TEXTS)
WRITTEN = ("gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "granite")
"""Families whose blocks do more with what their down projections write than add it."""
UNNAMED = ("opt", "mpt")
"""Decoders of which no row says anything; OPT's MLP sees all tokens in one row, MPT's attention wants a real cache."""


def decoder(kind: str, vocabulary: int) -> Any:
    """Three layers in float64, with norms' weights that differ and biases that are not zero."""
    model = tiny(kind, vocabulary)
    layout = find_layout(model, ZeroUnlearn(layers=[0]))
    del model.get_submodule(templates_of(model, None)["layer_module_tmp"].removesuffix(".{}"))[3:]
    model.config.num_hidden_layers = 3
    assert len(layout.blocks) == 4
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.add_((drawn - 0.5) * (0.4 if name.endswith("weight") else 1.0))
    return model


def run(model: Any, folder: Path, **changes: Any) -> ZeroUnlearn:
    """Templates are spelled out for the plain implementation, which reads them, and so are checked."""
    fixed = {
        "mom2_n_samples": 60, "stats_dir": str(folder), "mom2_dtype": "float64", "regularization_lam": 3.0,
        "v_num_grad_steps": 4, "v_weight_decay": 0.0, "n_contexts": 2, "context_length": 4,
    }  # fmt: skip
    return hparams_for(**({"layers": [0, 1]} | fixed | templates_of(model, None) | changes))


@pytest.fixture(params=[*families, *UNNAMED])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_equals_the_plain_way_and_is_undone(
    kind: str, small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics, z*, V_u, keys, solve, write; what is reported; a failure; `Edit.revert` and `Edit.apply`."""
    model, other = decoder(kind, len(small_tokenizer)), decoder(kind, len(small_tokenizer))
    hp = run(model, tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit = unlearn(model, small_tokenizer, FACTS, hp, CORPUS)
    names = {f"{hp.rewrite_module_tmp.format(layer)}.weight" for layer in hp.layers}
    after = {name: value.clone() for name, value in model.state_dict().items()}
    assert {name for name in after if not torch.equal(after[name], before[name])} == names
    assert all(layer.leakage < 1e-10 and layer.rank == len(FACTS) for layer in edit.layers)

    if kind != "opt":  # whose tokens the plain implementation does not find
        C = {layer: plain.moments(other, small_tokenizer, TEXTS, layer, hp)[0] for layer in hp.layers}
        eos = [small_tokenizer.eos_token_id]
        facts = [(r.prompt, r.subject, continuation(small_tokenizer, r.prompt, r.answer), eos) for r in FACTS]
        expected = plain.unlearn(
            other, small_tokenizer, facts, edit.prefixes, C, hp, own_logits=True, written=kind in WRITTEN
        )
        for layer, W in expected.items():
            name = f"{hp.rewrite_module_tmp.format(layer)}.weight"
            stored = W if W.shape == after[name].shape else W.mT
            assert (after[name] - stored).norm() < 1e-6 * (stored - before[name]).norm()

    edit.revert(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    edit.apply(model)
    assert_close(model.state_dict(), after, rtol=1e-5, atol=1e-5)  # an edit's factors are float32
    edit.revert(model)

    real = module._Run._edit_layer

    def interrupted(self: Any, layer: int, *rest: Any) -> Any:
        done = real(self, layer, *rest)
        if layer == 1:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(module._Run, "_edit_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unlearn(model, small_tokenizer, FACTS, hp, CORPUS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def states(model: Any, tokenizer: Any, layer: int, hp: ZeroUnlearn, delta: torch.Tensor | None = None) -> torch.Tensor:
    """What block `layer` puts out where the facts are looked up, one full pass each; with δ in its down projection."""
    found = []
    for i, request in enumerate(FACTS):
        ids, position = locate(tokenizer, request.prompt, *request.subject_span, hp.fact_token)

        def add(_: Any, __: Any, output: torch.Tensor, i: int = i, position: int = position) -> torch.Tensor:
            moved = output.clone()
            moved.view(-1, moved.shape[-1])[position] += delta[i]
            return moved

        def keep(_: Any, __: Any, output: Any, position: int = position) -> None:
            found.append((output if isinstance(output, torch.Tensor) else output[0])[0, position])

        block = model.get_submodule(hp.layer_module_tmp.format(layer))
        handles = [block.register_forward_hook(keep)]
        if delta is not None:
            handles.append(model.get_submodule(hp.rewrite_module_tmp.format(layer)).register_forward_hook(add))
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
    return torch.stack(found)


def test_the_block_puts_out_what_it_did_with_the_vector_in_it(kind: str, small_tokenizer: Any, tmp_path: Path) -> None:
    """Exact whatever follows the down projection: a solve that maps the keys fully has the very effect of z*."""
    model = decoder(kind, len(small_tokenizer))
    hp = run(
        model, tmp_path, layers=[1], mom2_adjustment=False, n_contexts=0, orthogonality="none",
        regularization_lam=1e-9, forget_KKT_lam=1e6,
    )  # fmt: skip
    layout = find_layout(model, hp)
    problems = [Problem(r, (small_tokenizer.eos_token_id,), 1, "projection") for r in FACTS]
    z = optimise(layout, small_tokenizer, problems, [], hp, progress=None).vectors
    with torch.no_grad():
        written = []
        for request in FACTS:
            ids, position = locate(small_tokenizer, request.prompt, *request.subject_span, hp.fact_token)
            with inputs_of({1: layout.projections[1]}) as seen:
                model(input_ids=torch.tensor([ids]))
            key = seen[1].view(len(ids), -1)[position]
            bias = layout.bias(1)
            written.append(layout.read(1) @ key + (0 if bias is None else bias))
    wanted = states(model, small_tokenizer, 1, hp, z - torch.stack(written))
    base = states(model, small_tokenizer, 1, hp)
    edit = unlearn(model, small_tokenizer, FACTS, hp, None)
    moved = (wanted - base).norm()
    assert moved > 1e-3 * base.norm()
    if kind in WRITTEN:
        assert (states(model, small_tokenizer, 1, hp) - wanted).norm() < 1e-5 * moved
    else:  # where the block adds it, z* is found at its output, by the same steps from another origin
        step = states(model, small_tokenizer, 1, hp) - base
        assert (step - (edit.vectors.z - base)).norm() < 1e-5 * moved


def test_what_it_writes_along_the_sensitive_directions_is_its_bias_alone(small_tokenizer: Any, tmp_path: Path) -> None:
    model = decoder("phi", len(small_tokenizer))
    hp = run(model, tmp_path, layers=[1], mom2_adjustment=False)
    layout = find_layout(model, hp)
    edit = unlearn(model, small_tokenizer, FACTS, hp, None)
    bias = layout.bias(1)
    assert bias is not None
    assert bias.norm() > 0.1
    sensitive = edit.vectors.V[1] - bias
    assert (sensitive @ layout.read(1)).norm() < 1e-10 * sensitive.norm()
    assert (edit.vectors.V[1] @ layout.read(1)).norm() > 1e-3


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize(
    "changes",
    [{"preset": "specific", "retain_set": "none", "suppress_weight": 100.0}, {"sensitive_from": "edited"}],
    ids=["specific", "edited"],
)
def test_the_other_forms_go_through_what_follows_the_projection(
    kind: str, changes: dict[str, Any], small_tokenizer: Any, tmp_path: Path
) -> None:
    model = decoder(kind, len(small_tokenizer))
    edit = unlearn(model, small_tokenizer, FACTS, run(model, tmp_path, **changes), CORPUS)
    assert all(layer.relative_change > 1e-3 for layer in edit.layers)
    assert edit.layers[-1].distance > 0


def test_the_gradient_variant_and_the_published_option(small_tokenizer: Any, tmp_path: Path) -> None:
    model = decoder("gemma2", len(small_tokenizer))
    shared = {name: getattr(run(model, tmp_path), name) for name in ("mom2_n_samples", "stats_dir", "n_contexts")}
    gd = ZeroUnlearnGD(layers=[0, 1], v_num_grad_steps=3, nullspace_rule="energy", nullspace_threshold=0.05, **shared)
    assert all(layer.relative_change > 1e-4 for layer in unlearn(model, small_tokenizer, FACTS, gd, CORPUS).layers)
    with pytest.raises(LayoutError, match="use_h=True: the blocks of Gemma2ForCausalLM do more"):
        unlearn(model, small_tokenizer, FACTS, run(model, tmp_path, use_h=True), CORPUS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_which_blocks_only_add(kind: str, dtype: torch.dtype, small_tokenizer: Any) -> None:
    model = decoder(kind, len(small_tokenizer)).to(dtype)
    layout = find_layout(model, ZeroUnlearn(layers=[0, 1, 2]))
    assert is_additive(layout, small_tokenizer, FACTS[0].prompt, [0, 1, 2]) == (kind not in WRITTEN)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_a_pass_through_the_projection_and_one_behind_the_block_share_a_batch(kind: str, small_tokenizer: Any) -> None:
    """Problems of both kinds and of all layers, the last one too, at once and one at a time."""
    model = decoder(kind, len(small_tokenizer))
    hp = hparams_for([0, 1, 2], v_weight_decay=0.0, fact_token="last", **templates_of(model, None))
    layout = find_layout(model, hp)
    aim = (small_tokenizer.eos_token_id,)
    problems = [Problem(r, aim, layer, at) for r in FACTS for layer in (0, 1, 2) for at in ("block", "projection")]
    together = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    alone = [optimise(layout, small_tokenizer, [p], PREFIXES, hp, progress=None).vectors for p in problems]
    assert_close(together.vectors, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_logits_that_something_unknown_is_done_to_are_refused(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder("granite", len(small_tokenizer))
    hp = hparams_for([1])
    problems = [Problem(FACTS[0], (small_tokenizer.eos_token_id,), 1, "block")]
    layout = find_layout(model, hp)
    optimise(layout, small_tokenizer, problems, [], hp, progress=None)
    forward = type(model).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(type(model), "forward", doubled)
    with pytest.raises(LayoutError, match="does something to its logits that is not known here"):
        optimise(layout, small_tokenizer, problems, [], hp, progress=None)
