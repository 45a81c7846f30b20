"""On an accelerator: where tensors lie, half precision, the seed, agreement with the CPU, EasyEdit's `device: 0`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import zerounlearn as zu
from tests.helpers import FACTS, hparams_for, tiny
from zerounlearn.api import unlearn_and_report
from zerounlearn.core.moments import SecondMoment
from zerounlearn.data.corpora import Corpus
from zerounlearn.data.fact import Fact
from zerounlearn.method.base import UnlearningMethod, load_method
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.model.answers import score
from zerounlearn.model.clock import Clock
from zerounlearn.model.generate import generate
from zerounlearn.model.peak import peak_memory
from zerounlearn.statistics.collect import second_moments

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
TEXTS = [f"{'People in Lisbon said so. ' * (i % 5)}In the year {i} the weather was fine." for i in range(200)]
KNOWN = [
    {"prompt": "The capital of {} is", "subject": subject, "answer": answer}
    for subject, answer in {"France": "Paris", "Germany": "Berlin", "Russia": "Moscow", "Italy": "Rome"}.items()
]
OTHERS = ("FT", "LoRA", "ROME", "MEMIT", "AlphaEdit", "PMET", "EMMET", "R-ROME", "WISE", "GRACE", "UltraEdit")
LOCATED: dict[str, Any] = {"layers": [1, 2], "v_num_grad_steps": 4, "n_contexts": 2, "retain_set": "none"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("ZeroUnlearn", LOCATED | {"preset": "paper"}),
    # A random model knows none of the facts: there is nothing to suppress, and of a made-up subject it says the same.
    "specific": ("ZeroUnlearn", LOCATED | {"preset": "specific", "z_objective": "neutral", "neutral_target": "eos"}),
    "GD, exact": ("ZeroUnlearn-GD", LOCATED | {"solver": "exact"}),
    "GD, Adam": ("ZeroUnlearn-GD", LOCATED | {"solver": "adam", "gd_steps": 20}),
    "GA": ("GA", {"layers": [1, 2], "steps": 2, "lr": 1e-3}),
    "NPO": ("NPO", {"layers": [1, 2], "retain_weight": 0, "steps": 2, "lr": 1e-3}),
    "RMU": ("RMU", {"layers": [1], "retain_weight": 0, "steps": 2, "lr": 1e-3}),
}


def method(name: str, folder: Path) -> UnlearningMethod:
    kind, changes = METHODS[name]
    if kind.startswith("ZeroUnlearn"):
        folder.mkdir(exist_ok=True)
        texts = folder / "texts.txt"
        texts.write_text("\n".join(TEXTS), encoding="utf-8")
        changes = changes | {"mom2_dataset": str(texts), "mom2_n_samples": 100, "stats_dir": str(folder / "stats")}
    return zu.methods[kind](**changes)  # type: ignore[call-arg]


@pytest.fixture
def real(smollm2_path: Path) -> Iterator[Any]:
    """The embedded model on the device, in the precision asked for."""
    loaded: list[PreTrainedModel] = []

    def load(dtype: torch.dtype) -> PreTrainedModel:
        loaded.append(AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=dtype).eval().to(CUDA))
        return loaded[-1]

    yield load
    loaded.clear()
    torch.cuda.empty_cache()


def published(smollm2_path: Path, folder: Path, preset: str) -> UnlearningMethod:
    settings = {"model_name": smollm2_path, "stats_dir": folder, "mom2_n_samples": 40, "preset": preset}
    return load_method(
        ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml", [f"{name}={value}" for name, value in settings.items()]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_an_edit_stays_where_the_model_is(name: str, dtype: torch.dtype, small_tokenizer: Any, tmp_path: Path) -> None:
    """Weights keep device and dtype, are reverted bit for bit, and no generator of the device is moved."""
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)  # within float16's range
    model = model.to(CUDA, dtype)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = torch.cuda.get_rng_state(CUDA)
    edit = zu.unlearn(model, small_tokenizer, list(map(Fact, FACTS)), method(name, tmp_path))
    assert torch.equal(torch.cuda.get_rng_state(CUDA), state)
    assert all((value.device, value.dtype) == (CUDA, dtype) for value in model.parameters())
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    assert changed and changed <= set(edit.digests)
    edit.revert(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    edit.apply(model)
    assert {n for n, value in model.named_parameters() if not torch.equal(value, before[n])} == changed
    edit.revert(model)
    edit.save(tmp_path / "edit", originals=True)
    here = model.to("cpu")
    for device in (torch.device("cpu"), CUDA):  # a file from the one goes on and off the other, to the last bit
        there = here.to(device)
        found = zu.Edit.load(tmp_path / "edit")
        found.apply(there)
        zu.Edit.load(tmp_path / "edit").revert(there)
        assert all(torch.equal(value, before[name].to(device)) for name, value in there.named_parameters())


@pytest.mark.parametrize("name", ["paper", "specific", "GD, exact"])
def test_the_weights_are_those_of_the_cpu(name: str, small_tokenizer: Any, tmp_path: Path) -> None:
    """In float64, where only the order of additions differs."""
    edited = {}
    for device in (torch.device("cpu"), CUDA):
        model = tiny("llama", len(small_tokenizer)).to(device)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        zu.unlearn(model, small_tokenizer, list(map(Fact, FACTS)), method(name, tmp_path / device.type))
        edited[device.type] = {
            n: (value - before[n]).cpu() for n, value in model.named_parameters() if not torch.equal(value, before[n])
        }
    assert set(edited["cpu"]) == set(edited["cuda"]) != set()
    for layer, change in edited["cpu"].items():
        assert float((edited["cuda"][layer] - change).norm() / change.norm()) < 1e-4


def test_a_seed_gives_the_same_weights_again(small_tokenizer: Any, tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        torch.cuda.manual_seed(len(results))  # which must not matter
        model = tiny("llama", len(small_tokenizer), dtype=torch.float32).to(CUDA)
        zu.unlearn(model, small_tokenizer, list(map(Fact, FACTS)), method("paper", tmp_path))
        results.append({name: value.detach().clone() for name, value in model.named_parameters()})
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rows_lose_nothing_in_a_second_moment(dtype: torch.dtype) -> None:
    """Their products are exact in float32: what is left are sums in float32, of 2,048 rows at a time."""
    X = torch.randn(16384, 1536, generator=torch.Generator().manual_seed(0)).to(CUDA, dtype)
    X[:, :32] *= 100  # as some keys are
    exact = X.double().mT @ X.double()
    gap = (SecondMoment.zeros(1536, device=CUDA).add(X).total - exact).abs()
    scale = exact.diagonal().sqrt()
    assert float((gap / torch.outer(scale, scale)).max()) < 1e-5


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_statistics_are_those_of_the_cpu(dtype: torch.dtype, bar: float, small_tokenizer: Any, tmp_path: Path) -> None:
    """To what float32's products and bfloat16's spacing leave; matrix products in TF32 would be at 1e-3."""
    moments = []
    for device in (torch.device("cpu"), CUDA):
        hparams = hparams_for([1, 2], mom2_n_samples=200, stats_dir=str(tmp_path / device.type))
        model = tiny("llama", len(small_tokenizer), dtype=torch.float32).to(device, dtype)
        found = second_moments(find_layout(model, hparams), small_tokenizer, hparams, Corpus("texts", lambda: TEXTS))
        moments.append({layer: found[layer] for layer in (1, 2)})
    for layer, C in moments[0].items():
        assert moments[1][layer].device.type == "cpu"
        assert float((moments[1][layer] - C).norm() / C.norm()) < bar


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("preset", ["paper", "specific"])
def test_the_real_model_forgets(
    preset: str, dtype: torch.dtype, real: Any, smollm2_path: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    run = published(smollm2_path, tmp_path, preset)
    report, _ = unlearn_and_report(real(dtype), smollm2_tokenizer, KNOWN, run)
    assert report.before.eff >= 0.75
    assert report.after.eff == 0
    assert report.after.ppl is not None and report.before.ppl is not None
    assert report.after.ppl < 1.5 * report.before.ppl
    assert report.environment["device"] == "cuda:0"
    assert report.environment["card"] == torch.cuda.get_device_name(CUDA)


def test_the_real_model_says_what_it_says_on_the_cpu(
    real: Any, smollm2: Any, smollm2_tokenizer: Any, smollm2_path: Path
) -> None:
    queries = [fact.request.query for fact in zu.load_facts(KNOWN)]
    there, here = (score(model, smollm2_tokenizer, queries) for model in (real(torch.float32), smollm2[0]))
    for a, b in zip(there, here, strict=True):
        assert a.said == b.said
        assert a.probability == pytest.approx(b.probability, rel=1e-3)


def test_text_is_generated_as_on_the_cpu(small_tokenizer: Any) -> None:
    model = tiny("llama", len(small_tokenizer))
    prompts = [request.prompt for request in FACTS]
    here = generate(model, small_tokenizer, prompts, tokens=6)
    assert generate(model.to(CUDA), small_tokenizer, prompts, tokens=6) == here


def test_the_framework_edits_on_device_0(smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zerounlearn.easyedit import ZeroUnlearnHyperParams  # before the framework, which it makes importable

    from easyeditor import BaseEditor  # isort: skip

    hparams = ZeroUnlearnHyperParams.from_hparams(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml")
    hparams = dataclasses.replace(
        hparams, model_name=str(smollm2_path), stats_dir=str(tmp_path), mom2_n_samples=40, device=0, batch_size=2
    )
    monkeypatch.chdir(tmp_path)  # where it writes its logs
    editor = BaseEditor.from_hparams(hparams)
    facts: dict[str, Any] = {
        "prompts": ["The capital of France is", "The capital of Germany is"],
        "subject": ["France", "Germany"],
        "ground_truth": ["Paris", "Berlin"],
        "target_new": ["<|im_end|>", "<|im_end|>"],
    }
    _, model, _ = editor.batch_edit(**facts, sequential_edit=True)  # or it puts the weights back
    assert {value.device for value in model.parameters()} == {CUDA}
    asked = [fact.request.query for fact in zu.load_facts(KNOWN[:2])]
    assert not any(answer.said for answer in score(model, editor.tok, asked))


@pytest.mark.parametrize("folder", OTHERS)
def test_the_frameworks_own_methods_run_there_and_are_undone(
    folder: str, real: Any, smollm2_path: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    from zerounlearn.easyedit.editions.compat import framework

    if framework().edition == "wheel" and folder not in ("FT", "LoRA", "ROME", "MEMIT"):
        pytest.skip(f"{folder} is not in this edition of EasyEdit")
    locating = folder in ("ROME", "MEMIT", "AlphaEdit", "PMET", "EMMET", "R-ROME")
    changes = ["mom2_n_samples=40", f"stats_dir={tmp_path}"] if locating else []
    run = load_method(ROOT / f"hparams/{folder}/smollm2-135m.yaml", [f"model_name={smollm2_path}", *changes])
    model = real(torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    asked = [fact.request.query for fact in zu.load_facts(KNOWN[:1])]
    base = [answer.probability for answer in score(model, smollm2_tokenizer, asked)]
    edit = zu.unlearn(model, smollm2_tokenizer, KNOWN[:1], run)
    after = [answer.probability for answer in score(model, smollm2_tokenizer, asked)]
    assert min(b - a for b, a in zip(base, after, strict=True)) > 0, (base, after)
    edit.revert(model)
    now = dict(model.named_parameters())
    assert set(now) == set(before) and all(torch.equal(value, before[name]) for name, value in now.items())
    assert {value.device for value in now.values()} == {CUDA}


@pytest.mark.parametrize("places", ["device and offloaded", "two devices"])
def test_a_model_that_is_spread_is_edited(places: str, small_tokenizer: Any, tmp_path: Path) -> None:
    """By accelerate, the edited layers on the device."""
    if places == "two devices" and torch.cuda.device_count() < 2:
        pytest.skip("this machine has one CUDA device")
    elsewhere: Any = 1 if places == "two devices" else "cpu"
    whole = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    whole.save_pretrained(tmp_path / "checkpoint")
    names = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 0, "lm_head": 0}
    layers = {f"model.layers.{i}": elsewhere if i == 3 else 0 for i in range(4)}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32, device_map=names | layers
    ).eval()
    run, facts = method("paper", tmp_path), list(map(Fact, FACTS))
    zu.unlearn(spread, small_tokenizer, facts, run)
    zu.unlearn(whole.to(CUDA), small_tokenizer, facts, run)
    for i in (1, 2):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        torch.testing.assert_close(spread.get_parameter(name), whole.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_a_stage_ends_when_the_device_is_through() -> None:
    X = torch.randn(8192, 8192, device=CUDA)
    X @ X
    torch.cuda.synchronize()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    clock = Clock({}, torch.nn.Linear(1, 1, device=CUDA))
    asked = time.perf_counter()
    with clock("products"):
        started.record()
        for _ in range(20):
            X @ X
        ended.record()
        given = time.perf_counter() - asked
    busy = started.elapsed_time(ended) / 1000
    assert clock.seconds["products"] >= 0.95 * busy > given, "the device was busy after the call returned"


def test_peak_memory_is_the_devices_own() -> None:
    with peak_memory(CUDA) as peak:
        torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    assert peak.bytes >= 2**28
