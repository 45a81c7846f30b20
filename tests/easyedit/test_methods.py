"""EasyEdit's own methods as baselines: what they are told, what they do to a model, and that it can be undone."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import SENTENCES
from tests.helpers import FACTS, tiny
from zerounlearn.audit.pair import Pair
from zerounlearn.data.request import Request
from zerounlearn.errors import AuditError, ConfigError, FrameworkError, IllPosedError, RequestError
from zerounlearn.method.base import load_method
from zerounlearn.method.base import methods as registry
from zerounlearn.method.edit import Edit
from zerounlearn.model.answers import score
from zerounlearn.model.tokens import encode

pytest.importorskip(
    "zerounlearn.easyedit", exc_type=FrameworkError, reason="EasyEdit is neither installed nor in EASYEDIT_HOME"
)
from zerounlearn.easyedit import isolation, methods
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.easyedit.targets import to_easyedit, tokenizer_for

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("FT", "LoRA", "ROME", "MEMIT", "AlphaEdit", "PMET", "EMMET", "R-ROME", "WISE", "GRACE", "UltraEdit")
SMALL = {
    "FT": ["layers=[1]", "num_steps=10", "lr=1e-2"],
    "LoRA": ["num_steps=10", "lr=5e-2"],
    "MEMIT": ["mom2_update_weight=1e-3"],
    "EMMET": ["mom2_update_weight=1e-3"],
    "PMET": ["mom2_update_weight=1e-3", "clamp_norm_factor=4"],
    "AlphaEdit": ["nullspace_threshold=1000", "L2=1e-3"],
    "ROME": [],
    "R-ROME": [],
    # its margins switched off, and the edit always taken: a random model has no scale to set them by
    "WISE": ['inner_params=["model.layers[2].mlp.down_proj.weight"]', "n_iter=30", "edit_lr=100", "act_ratio=0",
             "act_margin=[100,0,-100]"],
    "GRACE": ['inner_params=["model.layers[2].mlp.down_proj.weight"]', "n_iter=20"],
    "UltraEdit": ['inner_params=["model.layers.2.mlp.up_proj"]', "lr=100"],
}  # fmt: skip
# The subject comes last, where even in a random model something depends on it.
END = [
    Request.of("They speak the language of {}", "Lisbon", "Portuguese"),
    Request.of("The capital city of {}", "France", "Paris"),
]
VARIANTS = ("MEMIT_seq", "MEMIT_rect", "MEMIT_prune")  # of MEMIT's file
LOCATING = ("ROME", "MEMIT", *VARIANTS, "AlphaEdit", "PMET", "EMMET", "R-ROME")
IN_THE_WHEEL = ("FT", "LoRA", "ROME", "MEMIT", *VARIANTS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model() -> Any:
    model = tiny("llama", 400, dtype=torch.float32)
    model.config._name_or_path = model.name_or_path = "some/where/tiny-llama"
    return model


def load(folder: str, tmp_path: Path, *changes: str) -> Any:
    """The shipped file, cut down to the tiny model; skips what this edition does not have."""
    if framework().edition == "wheel" and folder not in IN_THE_WHEEL:
        pytest.skip(f"{folder} is not in this edition of EasyEdit")
    if folder in VARIANTS:
        return load("MEMIT", tmp_path, f"alg_name={folder}", *changes)
    overrides = list(SMALL[folder])
    if folder in LOCATING:
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("\n".join(SENTENCES))
        overrides += [f"mom2_dataset={corpus}", "mom2_n_samples=10m", f"stats_dir={tmp_path / 'stats'}",
                      "layers=[2]", "v_loss_layer=3", "v_num_grad_steps=20", "v_lr=3",
                      "lm_head_module=lm_head"]  # fmt: skip
    return methods.load_framework_hparams(ROOT / f"hparams/{folder}/smollm2-135m.yaml", [*overrides, *changes])


def state(model: nn.Module) -> dict[str, Any]:
    """All that an edit may leave behind."""
    return {
        "values": {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]},
        "flags": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "modules": [(n, id(m), m.training, sorted(vars(m))) for n, m in model.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "config": dict(vars(model.config)),
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    values = a["values"].keys() == b["values"].keys() and all(
        torch.equal(a["values"][n], b["values"][n]) for n in a["values"]
    )
    return values and all(a[key] == b[key] for key in a if key != "values")


def eos_probability(model: Any, tokenizer: Any, request: Request) -> float:
    ids = torch.tensor([encode(tokenizer, request.prompt)])
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, -1].softmax(-1)[tokenizer.eos_token_id])


def generators() -> tuple[Any, ...]:
    return random.getstate(), tuple(np.random.get_state()[1]), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("file", sorted((ROOT / "hparams").glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_shipped_file_is_of_the_method_that_its_folder_is_named_after(file: Path) -> None:
    name = file.parent.name
    if framework().edition == "wheel" and name in set(FOLDERS) - set(IN_THE_WHEEL):
        with pytest.raises(ConfigError, match="does not have it"):
            load_method(file)
    else:
        assert type(load_method(file)) is registry[name]


@pytest.mark.parametrize("folder", [*FOLDERS, *VARIANTS])
def test_a_method_moves_every_request_to_the_end_token_and_is_undone(
    folder: str, model: Any, small_tokenizer: Any, tmp_path: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hparams = load(folder, tmp_path)
    weak = folder in (*LOCATING, "WISE")  # their edits, of one layer of 32 states, undo each other
    requests = END[:1] if weak else END
    given, before, drawn, side = copy.deepcopy(hparams), state(model), generators(), small_tokenizer.padding_side
    base = np.log([eos_probability(model, small_tokenizer, r) for r in requests])
    capfd.readouterr()
    undo = methods.apply(model, small_tokenizer, requests, hparams, neutral="eos")
    edited = np.log([eos_probability(model, small_tokenizer, r) for r in requests])
    assert (edited - base > (0.03 if weak else 1.0)).all(), (base, edited)
    scores = score(model, small_tokenizer, [(r.prompt, r.answer) for r in requests])
    assert all(np.isfinite(s.probability) for s in scores)
    now = state(model)
    assert not any(m.training for m in model.modules())
    assert {n: f for n, f in now["flags"].items() if n in before["flags"]}.items() <= before["flags"].items()
    assert now["config"] == before["config"]
    assert generators() == drawn
    assert (small_tokenizer.padding_side, vars(hparams)) == (side, vars(given))
    assert capfd.readouterr().out == ""
    assert list(here.iterdir()) == []
    undo()
    assert same(state(model), before)

    torch.rand(3)  # what else happens in the process does not matter
    undo = methods.apply(model, small_tokenizer, requests, hparams, neutral=small_tokenizer.eos_token)
    repeated = np.log([eos_probability(model, small_tokenizer, r) for r in requests])
    np.testing.assert_allclose(repeated, edited, atol=1e-4)
    undo()
    assert same(state(model), before)


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f not in ("GRACE", "WISE", "LoRA")])
def test_an_edit_that_only_changes_weights_is_one_like_ours(
    folder: str, model: Any, small_tokenizer: Any, tmp_path: Path, here: Path
) -> None:
    """So that it can be kept in a file, put on again, and audited."""
    before, hparams = state(model), load(folder, tmp_path)
    edit = methods.FrameworkMethod(hparams).apply(model, small_tokenizer, END[:1])
    assert edit.undo is None
    assert edit.is_on(model)
    edited = {name: model.get_parameter(name).detach().clone() for name in edit.names}
    pair = Pair.of(model, edit)
    assert all(torch.equal(pair.original[name], before["values"][name]) for name in edit.names)
    edit.save(tmp_path / "edit.safetensors")
    edit.revert(model)
    after = state(model)
    before["modules"] = after["modules"]  # the model now holds what is remembered of its edits
    assert same(after, before)
    Edit.load(tmp_path / "edit.safetensors").apply(model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in edited.items())


@pytest.mark.parametrize("folder", ["GRACE", "WISE", "LoRA"])
def test_one_that_wraps_modules_is_known_by_what_undoes_it(
    folder: str, model: Any, small_tokenizer: Any, tmp_path: Path, here: Path
) -> None:
    before = state(model)
    edit = methods.FrameworkMethod(load(folder, tmp_path)).apply(model, small_tokenizer, END[:1])
    with pytest.raises(AuditError, match="wraps modules"):
        Pair.of(model, edit)
    edit.revert(model)
    assert same(state(model), before)


@pytest.mark.parametrize("folder", ["GRACE", "WISE"])
def test_an_answer_does_not_depend_on_the_batch(folder: str, model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    hparams = load(folder, tmp_path)
    undo = methods.apply(model, small_tokenizer, FACTS, hparams)
    items = [(r.prompt, r.answer) for r in FACTS] + [("The weather today was", "fine")]
    together = [s.probability for s in score(model, small_tokenizer, items)]
    alone = [score(model, small_tokenizer, [item])[0].probability for item in items]
    assert together == pytest.approx(alone, rel=1e-3, abs=1e-9)
    undo()


def test_grace_leaves_other_prompts_bit_for_bit(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    hparams = load("GRACE", tmp_path, "eps=1e-3")
    other = torch.tensor([encode(small_tokenizer, "You are a reader of it.")])
    with torch.no_grad():
        before = model(input_ids=other).logits
        undo = methods.apply(model, small_tokenizer, FACTS, hparams)
        torch.testing.assert_close(model(input_ids=other).logits, before)
    undo()


def test_the_statistics_are_ours(
    model: Any, small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hparams = load("MEMIT", tmp_path, "layers=[1,2]", "v_num_grad_steps=2")
    main = sys.modules["easyeditor.models.memit.memit_main"]
    seen = []
    original = main.get_cov
    monkeypatch.setattr(main, "get_cov", lambda *a, **k: seen.append((a[2], original(*a, **k))) or seen[-1][1])
    methods.apply(model, small_tokenizer, FACTS, hparams)()
    found = {str(p.name).partition("_float32")[0]: p for p in (tmp_path / "stats").rglob("*.npz")}
    assert [name for name, _ in seen] == [f"model.layers.{i}.mlp.down_proj" for i in (1, 2)]
    for name, C in seen:
        with np.load(found[name]) as arrays:
            expected = arrays["mom2.mom2"] / arrays["mom2.count"]
        np.testing.assert_allclose(C.numpy(), expected, rtol=1e-6)
    assert main.COV_CACHE == {}


def edited(model: Any, tokenizer: Any, hparams: Any, requests: list[Request] = FACTS) -> torch.Tensor:
    """The weight of layer 2 as the method leaves it; the model is put back."""
    undo = methods.apply(model, tokenizer, requests, hparams)
    weight = model.model.layers[2].mlp.down_proj.weight.detach().clone()
    undo()
    return weight


def test_a_tied_head_may_be_named_as_itself(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    """As in the published files for Llama-3.2-3B and Qwen3-4B, where EasyEdit's look-up would fail."""
    model.lm_head.weight = model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    results = [
        edited(model, small_tokenizer, load("MEMIT", tmp_path, f"lm_head_module={name}"))
        for name in ("lm_head", "model.embed_tokens")
    ]
    assert torch.equal(*results)


def test_rect_keeps_memits_largest_relative_changes(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    before = model.model.layers[2].mlp.down_proj.weight.detach().clone()
    memit = edited(model, small_tokenizer, load("MEMIT", tmp_path))
    rect = edited(model, small_tokenizer, load("MEMIT_rect", tmp_path))
    kept = rect != before
    assert kept.float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert torch.equal(rect[kept], memit[kept])
    relative = ((memit - before) / before).abs()
    assert relative[kept].min() >= relative[~kept].max()
    assert torch.equal(edited(model, small_tokenizer, load("MEMIT_rect", tmp_path, "kept_percent=100")), memit)


def test_prune_lowers_what_exceeds_the_weight(model: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    before = model.model.layers[2].mlp.down_proj.weight.detach().double()
    gentle = "mom2_update_weight=1e6"
    memit = edited(model, small_tokenizer, load("MEMIT", tmp_path, gentle))
    D, most = memit.double() - before, torch.linalg.matrix_norm(before, 2)
    prune = edited(model, small_tokenizer, load("MEMIT_prune", tmp_path, gentle))
    assert torch.linalg.matrix_norm(D, 2) <= most
    assert torch.equal(prune, memit)
    memit = edited(model, small_tokenizer, load("MEMIT", tmp_path))
    prune = edited(model, small_tokenizer, load("MEMIT_prune", tmp_path))
    large, lowered = (torch.linalg.svdvals(x.double() - before) for x in (memit, prune))
    assert large[0] > 2 * most
    expected = torch.where(large > most, large.log() - most.log() + most, large)
    np.testing.assert_allclose(lowered[:3], expected[:3], rtol=1e-4)


def test_seq_solves_against_the_keys_of_the_groups_before(
    model: Any, small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer is edited, so its own keys are the same before and after; λC cancels in the difference."""
    solve, seen = torch.linalg.solve, []
    monkeypatch.setattr(torch.linalg, "solve", lambda A, B, **k: seen.append((A, B)) or solve(A, B, **k))
    groups = edited(model, small_tokenizer, load("MEMIT_seq", tmp_path, "group_size=1"), END)
    (first, K1), (second, K2) = seen
    assert K1.shape[1] == K2.shape[1] == 1
    np.testing.assert_allclose(second - first, K2 @ K2.T, atol=1e-6 * float(first.abs().max()))
    assert float((K2 @ K2.T).abs().max()) > 1e-3 * float(first.abs().max())
    seen.clear()
    at_once = edited(model, small_tokenizer, load("MEMIT_seq", tmp_path), END)
    assert len(seen) == 1
    assert torch.equal(at_once, edited(model, small_tokenizer, load("MEMIT", tmp_path), END))
    assert not torch.equal(at_once, groups)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("MEMIT_seq", "group_size=-1", "group_size=-1: expected a whole number >= 0"),
        ("MEMIT_seq", "mom2_update_weight=0", "mom2_update_weight=0: MEMIT_seq weighs"),
        ("MEMIT_rect", "kept_percent=0", "kept_percent=0: expected a number > 0 and <= 100"),
        ("MEMIT_prune", "kept_percent=40", "unknown hyperparameter 'kept_percent'"),
    ],
)
def test_a_variants_bad_value_is_named(name: str, change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(name, tmp_path, change)


def test_a_variant_is_named_in_what_it_reports(tmp_path: Path) -> None:
    hparams = load("MEMIT_rect", tmp_path)
    assert methods.FrameworkMethod(hparams).to_dict() | {"alg_name": "MEMIT_rect", "kept_percent": 40} == vars(hparams)


def test_a_failing_method_leaves_nothing(
    model: Any, small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hparams = load("FT", tmp_path)
    before = state(model)
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")

    def spoil(model: Any, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            weight.zero_()
        model.model.layers[0].mlp = nn.Identity()
        model.model.layers[2].register_forward_hook(lambda *_: None)
        model.config.use_cache = False
        model.train()
        raise ValueError("out of luck")

    table = sys.modules["easyeditor.util.alg_dict"].ALG_DICT
    monkeypatch.setitem(table, "FT", spoil)
    with pytest.raises(ValueError, match="out of luck"):
        methods.apply(model, small_tokenizer, FACTS, hparams)
    assert same(state(model), before)

    def overflow(*_: Any, **__: Any) -> None:
        with torch.no_grad():
            weight[0, 0] = float("nan")

    monkeypatch.setitem(table, "FT", overflow)
    with pytest.raises(IllPosedError, match="NaN"):
        methods.apply(model, small_tokenizer, FACTS, hparams)
    assert same(state(model), before)


def test_a_run_finds_no_state_of_another_and_leaves_none() -> None:
    main = sys.modules["easyeditor.models.rome.rome_main"]
    main.CONTEXT_TEMPLATES_CACHE = ["somebody's"]
    try:
        with isolation.isolated(torch.device("cpu"), 0):
            assert main.CONTEXT_TEMPLATES_CACHE is None
            main.CONTEXT_TEMPLATES_CACHE = ["ours"]
        assert main.CONTEXT_TEMPLATES_CACHE == ["somebody's"]
    finally:
        main.CONTEXT_TEMPLATES_CACHE = None


def test_the_end_token_survives_tokenising(small_tokenizer: Any) -> None:
    before = small_tokenizer(" <eos>")["input_ids"]
    assert before != [small_tokenizer.eos_token_id]  # the trap
    ours = tokenizer_for(small_tokenizer, FACTS, "eos", "left", rows=len(small_tokenizer))
    end = small_tokenizer.eos_token_id
    for request in FACTS:
        assert encode(ours, f"{request.prompt} <eos>") == [*encode(small_tokenizer, request.prompt), end]
    assert ours.pad_token_id != end
    assert ours.padding_side == "left"
    assert len(ours) == len(small_tokenizer)
    assert small_tokenizer(" <eos>")["input_ids"] == before
    assert small_tokenizer.pad_token_id == end

    lonely = copy.deepcopy(small_tokenizer)  # like GPT-2's, whose one special token is everything
    lonely.bos_token = lonely.unk_token = lonely.pad_token = "<eos>"
    ours = tokenizer_for(lonely, FACTS, "eos", "right", rows=len(lonely))
    assert end not in (ours.bos_token_id, ours.unk_token_id, ours.pad_token_id)
    assert ours.eos_token_id == end
    prompts = {token for request in FACTS for token in encode(lonely, request.prompt)}
    assert ours.pad_token_id not in prompts


def test_requests_as_easyedit_wants_them(small_tokenizer: Any) -> None:
    [record, *_] = to_easyedit(small_tokenizer, FACTS, "eos", template=True, space=False)
    assert record == {
        "case_id": 0, "prompt": "The capital of {} is", "subject": "France", "target_new": "<eos>",
        "ground_truth": "Paris",
    }  # fmt: skip
    [record, *_] = to_easyedit(small_tokenizer, FACTS, "nothing", template=False, space=True)
    assert (record["prompt"], record["target_new"]) == ("The capital of France is", " nothing")
    own = Request.of("The capital of {} is", "France", "Paris", "eos")
    assert to_easyedit(small_tokenizer, [own], "nothing", template=True, space=False)[0]["target_new"] == "<eos>"
    with pytest.raises(RequestError, match="brace"):
        to_easyedit(small_tokenizer, [Request("In {a}, ", "France", " is", "x")], "eos", template=True, space=False)
    twice = Request.of("France and the capital of France is", "France", "Paris")
    with pytest.raises(RequestError, match="more than once"):
        to_easyedit(small_tokenizer, [twice], "eos", template=True, space=False)
    assert to_easyedit(small_tokenizer, [twice], "eos", template=False, space=False)


@pytest.mark.parametrize(
    "file", sorted(f for folder in FOLDERS for f in (ROOT / "hparams" / folder).glob("*.yaml")),
    ids=lambda file: f"{file.parent.name} {file.stem}",
)  # fmt: skip
def test_every_shipped_file_loads_or_names_the_edition_that_has_it(file: Path) -> None:
    if framework().edition == "wheel" and file.parent.name not in IN_THE_WHEEL:
        with pytest.raises(ConfigError, match=r"2023.*2026.*EASYEDIT_HOME"):
            methods.load_framework_hparams(file)
        return
    hparams = methods.load_framework_hparams(file, ["max_length=33", "device=cpu"])
    assert (hparams.max_length, hparams.device) == (33, "cpu")
    assert type(hparams).__module__.startswith("easyeditor.models.")


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("FT", "alg_name=FTT", "expected one of FT, LoRA"),
        ("FT", "num_step=3", "did you mean 'num_steps'"),
        ("FT", "layers=[]", "at least one layer"),
        ("FT", "layers=[-1]", "counted from 0"),
        ("FT", "num_steps=0", "whole number >= 1"),
        ("MEMIT", "mom2_dataset=nowhere", "mom2_dataset='nowhere'"),
        ("MEMIT", "model_parallel=true", "set it to False"),
        ("MEMIT", "group_size=1", "unknown hyperparameter 'group_size' of MEMITHyperParams"),
    ],
)
def test_a_bad_value_is_named(folder: str, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        methods.load_framework_hparams(ROOT / f"hparams/{folder}/smollm2-135m.yaml", [change])


def test_what_the_wheel_cannot_do_is_refused() -> None:
    if framework().edition != "wheel":
        pytest.skip("this is a checkout of EasyEdit")
    with pytest.raises(ConfigError, match="lora_type='lora'.*'adalora' alone"):
        methods.load_framework_hparams(ROOT / "hparams/LoRA/smollm2-135m.yaml", ["lora_type=lora"])


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    text = (ROOT / "hparams/ROME/smollm2-135m.yaml").read_text().replace("v_lr:", "# v_lr:")
    (tmp_path / "rome.yaml").write_text(text)
    with pytest.raises(ConfigError, match="v_lr is missing"):
        methods.load_framework_hparams(tmp_path / "rome.yaml")


def test_a_layer_that_is_not_there_is_named_before_anything_changes(
    model: Any, small_tokenizer: Any, tmp_path: Path
) -> None:
    hparams = load("FT", tmp_path, "layers=[9]")
    before = state(model)
    with pytest.raises(ConfigError, match=r"layers=\[9\]"):
        methods.apply(model, small_tokenizer, FACTS, hparams)
    assert same(state(model), before)


@pytest.mark.easyedit_checkout
def test_the_same_on_a_checkout() -> None:
    if not os.environ.get("EASYEDIT_HOME"):
        pytest.skip("EASYEDIT_HOME names no checkout of EasyEdit")
    tests = [str(Path(__file__).relative_to(ROOT)), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 skipped" in done.stdout.splitlines()[-1]  # what is about the wheel
