"""The baselines' hyperparameters: the shipped files, every mistake named, and no field that nothing reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zerounlearn.errors import ConfigError
from zerounlearn.method.base import load_method, methods
from zerounlearn.method.gradient.base import GradientMethod
from zerounlearn.method.gradient.rmu import RMU

ROOT = Path(__file__).resolve().parents[3]
METHODS = {n: kind for n, kind in methods.items() if issubclass(kind, GradientMethod)}
FILES = sorted(file for name in METHODS for file in (ROOT / "hparams" / name).glob("*.yaml"))
GOOD = {"model_name": "models/llama-x", "layers": [3, 4]}


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_file_loads(file: Path) -> None:
    hp = load_method(file)
    assert hp.alg_name == file.parent.name
    assert type(hp) is METHODS[hp.alg_name]
    adapters = hp.alg_name == "NPO-LoRA"
    assert (hp.layers == []) == (adapters or (file.stem.endswith("_all") and "_paper" not in file.stem))
    assert hp.lr < 1e-2
    if file.stem.endswith(("_paper", "_paper_all")):
        assert hp.preset.startswith("paper")
        for preset in hp.PRESETS:
            assert load_method(file, [f"preset={preset}"]).layers or adapters or preset == "default"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("GA/llama3.2-3b_paper", {"layers": [18], "lr": 5e-3, "epochs": 25}),
        ("GA/llama3.1-8b_paper", {"layers": [21], "lr": 5e-3, "epochs": 25}),
        ("GA/qwen3-4b_paper", {"layers": [8], "lr": 5e-3, "epochs": 25}),
        ("NPO/llama3.2-3b_paper", {"layers": [16, 17, 18], "epochs": 10, "retain_weight": 0}),
        ("NPO/llama3.2-3b_paper_all", {"layers": list(range(28)), "epochs": 10, "retain_weight": 0}),
        ("NPO/llama3.1-8b_paper", {"layers": [24], "epochs": 5, "retain_loss": "nll_tokens", "retain_weight": 1}),
        ("NPO/qwen3-4b_paper", {"layers": [24], "epochs": 5, "retain_loss": "nll_tokens", "retain_weight": 1}),
        ("NPO-LoRA/llama3.2-3b_paper", {"layers": [], "epochs": 5, "lr": 1e-4, "weight_decay": 0.01}),
        ("NPO-LoRA/llama3.1-8b_paper", {"layers": [], "epochs": 5, "lr": 1e-4, "weight_decay": 0.01}),
        ("NPO-LoRA/qwen3-4b_paper", {"layers": [], "epochs": 5, "lr": 1e-4, "weight_decay": 0.01}),
    ],
)
def test_published_runs_have_the_published_values(file: str, expected: dict) -> None:
    """Those of hparams/{GA,NPO,NPO_LoRA}/*.json of the published code."""
    hp = load_method(ROOT / "hparams" / file)
    assert {name: getattr(hp, name) for name in expected} == expected


def test_epochs_count_in_passes_and_beat_steps() -> None:
    hp = METHODS["GA"](**GOOD, epochs=3, steps=7, minibatch_size=4)
    assert [hp.step_count(n) for n in (1, 4, 5)] == [3, 3, 6]
    assert hp.replace(epochs=None).step_count(5) == 7


def test_every_method_ships_a_file() -> None:
    assert {file.parent.name for file in FILES} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_complete_and_round_trip(name: str) -> None:
    hp = METHODS[name].from_mapping(GOOD)
    assert hp.alg_name == name
    assert METHODS[name].from_mapping(hp.to_dict()) == hp


def test_overrides_win_and_easyedits_loader_habits_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("alg_name: NPO\nmodel_name: llama\nlayers: [1.0, 2.0]\nbeta: '1e-1'\nsteps: 4.0\n")
    hp = load_method(tmp_path / "run", ["layers=all", "lr=0.5"])
    assert (hp.layers, hp.lr, hp.steps) == ([], 0.5, 4)
    assert load_method(file, ["alg_name=SimNPO", "gamma=1"]).gamma == 1
    with pytest.raises(ConfigError, match="alg_name='NPOO': no method 'NPOO': did you mean 'NPO'"):
        load_method(file, ["alg_name=NPOO"])
    with pytest.raises(ConfigError, match="run.yaml: unknown hyperparameter 'gamma' of NPO"):
        load_method(file, ["gamma=1"])


def test_rmus_layers() -> None:
    """WMDP trains the steered layer and the two below it."""
    assert RMU(model_name="x", rmu_layer=7).layers == [5, 6, 7]
    assert RMU(model_name="x", rmu_layer=1).layers == [0, 1]
    assert RMU(model_name="x", layers=[3, 4]).rmu_layer == 4
    assert RMU(model_name="x", layers="all", rmu_layer=4).layers == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("GA", {"lrr": 0.1}, "unknown hyperparameter 'lrr' of GA: did you mean 'lr'"),
        ("GA", {"retain_weight": 1}, "unknown hyperparameter 'retain_weight'"),
        ("GA", {"layers": [4, 3]}, "layers=[4, 3]: expected layers counted from 0, in ascending order, or 'all'"),
        ("GA", {"layers": [3, 3]}, "layers=[3, 3]"),
        ("GA", {"layers": [-1]}, "layers=[-1]"),
        ("GA", {"layers": "some"}, "layers='some': expected a list of whole numbers"),
        ("GA", {"lr": 0}, "lr=0.0: expected a number > 0"),
        ("GA", {"lr": float("nan")}, "lr=nan"),
        ("GA", {"steps": 0}, "steps=0: expected a whole number >= 1"),
        ("GA", {"minibatch_size": 0}, "minibatch_size=0"),
        ("GA", {"epochs": 0}, "epochs=0: expected a whole number >= 1"),
        ("GA", {"preset": "specific"}, "preset='specific': expected one of default, paper"),
        ("GA", {"objective": "all"}, "objective='all': expected one of answer, prompt_last"),
        ("NPO", {"row_length": 1}, "row_length=1: expected a whole number >= 2"),
        ("NPO-LoRA", {"lora_rank": 0}, "lora_rank=0: expected a whole number >= 1"),
        ("NPO-LoRA", {"lora_dropout": 1}, "lora_dropout=1.0: expected a number < 1"),
        ("GA", {"weight_decay": -1}, "weight_decay=-1.0: expected a number >= 0"),
        ("GA", {"max_grad_norm": -1}, "max_grad_norm=-1.0"),
        ("GA", {"alg_name": "NPO"}, "alg_name='NPO': these are the hyperparameters of 'GA'"),
        ("GA", {"rewrite_module_tmp": "model"}, "rewrite_module_tmp='model': expected one {}"),
        ("GA", {"model_name": ""}, "model_name is missing"),
        ("NPO", {"beta": 0}, "beta=0.0: expected a number > 0"),
        ("SimNPO", {"gamma": -1}, "gamma=-1.0: expected a number >= 0"),
        ("GradDiff", {"retain_weight": -1}, "retain_weight=-1.0"),
        ("GradDiff", {"retain_loss": "mse"}, "retain_loss='mse': expected one of nll, nll_tokens, kl, kl_rows"),
        ("GradDiff", {"text_max_length": 1}, "text_max_length=1: expected a whole number >= 2"),
        ("DPO-Unlearn", {"neutral_target": " "}, "neutral_target=' '"),
        ("IdkPO", {"idk_text": "eos"}, "idk_text='eos': expected a text"),
        ("RMU", {"steering_coefficient": 0}, "steering_coefficient=0.0"),
        ("RMU", {"rmu_layer": 3}, "layers=[3, 4]: [4] cannot change the output of rmu_layer=3"),
        ("RMU", {"layers": "all"}, "rmu_layer is missing"),
        ("RMU", {"layers": [0], "rmu_layer": -1}, "rmu_layer=-1"),
    ],
)
def test_mistakes_are_named(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        METHODS[name].from_mapping(GOOD | changes)
