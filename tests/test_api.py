"""The front door: unlearn, evaluate and report on any model, without EasyEdit."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ConfigError, EditError
from zerounlearn.method.base import UnlearningMethod

TEXT = ["The weather today was fine.", "People speak, as they do in Lisbon."]
KEPT = [{"prompt": "The capital of {} is", "subject": "Germany", "answer": "Berlin"}]


@pytest.fixture
def model(small_tokenizer: Any) -> Any:
    return tiny("llama", len(small_tokenizer), dtype=torch.float32)


def facts() -> list[Fact]:
    paraphrases = ("France's capital is", "The capital city of France is")
    return [Fact(FACTS[0], paraphrases, (("The capital of Germany is", "Berlin"),)), *map(Fact, FACTS[1:])]


def quick(kind: str = "ZeroUnlearn", **changes: Any) -> UnlearningMethod:
    fixed: dict[str, Any] = {
        "ZeroUnlearn": {"v_num_grad_steps": 8, "mom2_adjustment": False},
        "NPO": {"retain_weight": 0, "steps": 3, "lr": 1e-2},
        "GA": {"steps": 2, "lr": 1e-3},
    }[kind]
    return zu.methods[kind](**({"layers": [1, 2]} | fixed | changes))  # type: ignore[call-arg]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("kind", ["ZeroUnlearn", "NPO", "GA"])
def test_an_edit_is_reverted_and_put_on_again(kind: str, model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    before = weights(model)
    edit = zu.unlearn(model, small_tokenizer, facts(), quick(kind))
    edited = weights(model)
    assert not same(model, before)
    assert set(edit.before) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2)}
    edit.revert(model)
    assert same(model, before)
    edit.apply(model)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, edited[name], rtol=1e-5, atol=1e-6)
    edit.revert(model)
    assert same(model, before)

    edit.save(tmp_path / "edit.safetensors")
    loaded = zu.Edit.load(tmp_path / "edit.safetensors")
    loaded.apply(model)
    assert not same(model, before)
    loaded.revert(model)
    assert same(model, before)


def test_an_edit_goes_on_its_own_model_alone(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    edit = zu.unlearn(model, small_tokenizer, facts(), quick())
    edited = weights(model)
    later = zu.unlearn(model, small_tokenizer, [Fact(FACTS[1])], quick())
    with pytest.raises(EditError, match="take back later edits first"):
        edit.revert(model)
    later.revert(model)
    assert same(model, edited)
    with pytest.raises(EditError, match="it is on this model already"):
        edit.apply(model)
    other = tiny("gpt2", len(small_tokenizer), dtype=torch.float32)
    with pytest.raises(EditError, match="model.layers.1.*the edit was made on another model"):
        edit.revert(other)
    with pytest.raises(EditError, match="is no edit, or damaged"):
        zu.Edit.load(Path(__file__))
    file = tmp_path / "edit.safetensors"
    edit.save(file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(EditError, match="is no edit, or damaged"):
        zu.Edit.load(file)


def test_an_edit_in_half_precision_is_reverted_from_its_file_exactly_or_not_at_all(
    small_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.bfloat16)
    before = weights(model)
    edit = zu.unlearn(model, small_tokenizer, facts(), quick())
    edited = weights(model)
    edit.save(tmp_path / "edit.safetensors")
    loaded = zu.Edit.load(tmp_path / "edit.safetensors")
    refused = None
    try:
        loaded.revert(model)
    except EditError as error:
        refused = str(error)
    assert same(model, before) if refused is None else same(model, edited)
    assert refused is None or "cannot be had exactly" in refused


def test_evaluation_says_what_changed(model: Any, small_tokenizer: Any) -> None:
    before = zu.evaluate(model, small_tokenizer, facts(), text=TEXT)
    assert len(before.facts) == 3
    assert len(before.facts[0].paraphrases) == 2
    assert before.phase.spe is not None
    edit = zu.unlearn(model, small_tokenizer, facts(), quick())
    after = zu.evaluate(model, small_tokenizer, facts(), text=TEXT)
    line = after.against(before)
    assert [part.split()[0] for part in line.split(", ")] == ["Eff", "Gen", "Spe", "PPL"]
    assert f"PPL {before.phase.ppl:.1f} → {after.phase.ppl:.1f}" in line
    assert zu.evaluate(model, small_tokenizer, facts(), text=None).phase.ppl is None
    edit.revert(model)
    assert zu.evaluate(model, small_tokenizer, facts(), text=TEXT) == before


def test_a_configurations_own_retain_set_takes_part(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    """`unlearn` resolves `retain_set` itself: the file's keys are kept, as when the facts are given directly."""
    file = tmp_path / "retain.json"
    file.write_text('[{"prompt": "The capital of {} is", "subject": "Germany", "answer": "Berlin"}]')
    before = weights(model)
    changed = {}
    for name, run, retain in (
        ("none", quick(), None),
        ("file", quick(retain=str(file)), None),
        ("given", quick(), KEPT),
    ):
        edit = zu.unlearn(model, small_tokenizer, facts(), run, retain=retain)
        changed[name] = (weights(model), [layer.kept for layer in edit.layers])
        edit.revert(model)
    assert same(model, before)
    assert [changed[name][1] for name in ("none", "file", "given")] == [[0, 0], [1, 1], [1, 1]]
    assert same(model, before)
    for name, value in changed["file"][0].items():
        assert torch.equal(value, changed["given"][0][name])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", ["Report", "FactReport", "environment", "_measured"])
def test_weights_are_as_before_whatever_fails_after_the_edit(
    place: str, error: type[BaseException], model: Any, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zerounlearn import api

    before, real, calls = weights(model), getattr(api, place), []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if place == "_measured" and len(calls) == 1:
            return real(*args, **kwargs)
        raise error

    fails.of = fails  # type: ignore[attr-defined]
    monkeypatch.setattr(api, place, fails)
    with pytest.raises(error):
        zu.unlearn_and_report(model, small_tokenizer, facts(), quick(), text=None)
    assert calls
    assert same(model, before)


def test_a_method_by_its_file(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("alg_name: GA\nmodel_name: tiny\nlayers: [1]\nsteps: 2\n")
    edit = zu.unlearn(model, small_tokenizer, facts(), file)
    assert (edit.method, list(edit.before)) == ("GA", ["model.layers.1.mlp.down_proj.weight"])
    with pytest.raises(ConfigError, match="method=3: expected a configuration"):
        zu.unlearn(model, small_tokenizer, facts(), 3)  # type: ignore[arg-type]


def test_importing_the_package_imports_nothing_heavy_and_every_name_is_there() -> None:
    code = (
        "import sys, zerounlearn as zu\n"
        "heavy = {'torch', 'transformers', 'easyeditor', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "missing = [name for name in zu.__all__ if not hasattr(zu, name)]\n"
        "assert not missing, missing\n"
        "assert 'easyeditor' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_report_of_a_gradient_method_has_no_layers(model: Any, small_tokenizer: Any) -> None:
    report, _ = zu.unlearn_and_report(model, small_tokenizer, facts(), quick("NPO"), text=None)
    text = report.to_markdown()
    assert "by NPO" in text
    assert "## Layers" not in text
    assert "| forget |" in text


def test_nothing_but_its_own_room_names_easyedit_as_an_import() -> None:
    """String imports included: import-linter does not see `importlib.import_module("easyeditor…")`."""
    root = Path(zu.__file__).parent
    naming = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if re.search(
            r"(import_module|find_spec|__import__)\([^)]*easyeditor|^\s*(import|from) easyeditor",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    assert naming <= {"easyedit"}, naming


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("preset", ["paper", "specific"])
def test_a_closed_form_edit_is_thin_factors(kind: str, preset: str, small_tokenizer: Any, tmp_path: Path) -> None:
    """Their product is the change, in the checkpoint's own orientation; ε scales every direction, and leaves none."""
    model = tiny(kind, len(small_tokenizer), dtype=torch.float32)
    before = weights(model)
    edit = zu.unlearn(model, small_tokenizer, facts(), quick(preset=preset, retain_set="none", z_objective="neutral"))
    assert set(edit.factors) == set(edit.before)
    assert not edit.changes
    most = {"paper": 2 * len(facts()), "specific": 6 * len(facts())}[preset]
    for name, (left, right) in edit.factors.items():
        assert left.shape[1] == right.shape[0] <= most
        change = (model.get_parameter(name) - before[name]).double()
        torch.testing.assert_close(left.double() @ right.double(), change, rtol=1e-3, atol=1e-6)
    edited = weights(model)
    edit.revert(model)
    edit.apply(model)
    assert same(model, edited), "to the last bit: the product is taken and rounded as the method did"
    edit.revert(model)
    assert same(model, before)
    if preset == "paper":
        scaled = zu.unlearn(model, small_tokenizer, facts(), quick(projection_eps=0.01))
        assert not scaled.factors
        assert set(scaled.changes) == set(scaled.before)


def test_before_and_after_are_measured_by_one_joint(model: Any, small_tokenizer: Any, monkeypatch) -> None:
    """Where the text leaves it open, the model as it was decides, and the edited one is not asked again."""
    from zerounlearn import api

    asked = []
    real = api.resolve_joints

    def counted(model: Any, tokenizer: Any, queries: Any) -> Any:
        asked.append(len(queries))
        return real(model, tokenizer, queries)

    monkeypatch.setattr(api, "resolve_joints", counted)
    doubtful = Fact(replace(FACTS[0], after=" is:"))
    zu.unlearn_and_report(model, small_tokenizer, [doubtful], quick(), text=None)
    assert asked[-1] == 0
    assert sum(asked) > 0
