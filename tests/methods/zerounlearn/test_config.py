"""Hyperparameters: every field read somewhere, every mistake named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from zerounlearn.errors import ConfigError
from zerounlearn.methods.zerounlearn.config import (
    METHODS,
    ZeroUnlearnGDHyperParams,
    ZeroUnlearnHyperParams,
    load_hparams,
)

ROOT = Path(__file__).resolve().parents[3]
GOOD = {"model_name": "models/llama-x", "layers": [3, 4]}


FILES = sorted(file for name in METHODS for file in (ROOT / "hparams" / name).glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_file_loads(file: Path) -> None:
    hp = load_hparams(file)
    assert hp.alg_name == file.parent.name
    assert isinstance(hp, METHODS[hp.alg_name])
    assert (hp.v_num_grad_steps, hp.clamp_norm_factor, hp.kl_factor) == (25, 0.75, 0.0625)


def test_the_gradient_variants_own_fields(tmp_path: Path) -> None:
    hp = load_hparams(ROOT / "hparams/ZeroUnlearn-GD/smollm2-135m.yaml", ["solver=adam", "nullspace_rule=energy"])
    assert isinstance(hp, ZeroUnlearnGDHyperParams)
    assert (hp.solver, hp.gd_steps, hp.gd_lr, hp.target_weight, hp.norm_weight) == ("adam", 500, 1e-3, 100, 0.1)
    for changes, message in [
        ({"solver": "sgd"}, "solver='sgd': expected one of exact, adam"),
        ({"nullspace_rule": "share"}, "nullspace_rule='share'"),
        ({"norm_weight": 0}, "norm_weight=0.0: expected a number > 0"),
        ({"sensitive_weight": -1}, "sensitive_weight=-1.0"),
        (
            {"wiki_KKT_lam": 1, "wiki_VKT_lam": 1, "mom2_update_weight": 1},
            "wiki_KKT_lam=1.0: the method does not depend",
        ),
        ({"mom2_adjustment": False}, "mom2_adjustment=False: the method does not depend"),
        ({"alg_name": "ZeroUnlearn"}, "hyperparameters of 'ZeroUnlearn-GD'"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            ZeroUnlearnGDHyperParams.from_mapping(GOOD | changes)
    other = tmp_path / "other.yaml"
    other.write_text("alg_name: MEMIT\nmodel_name: llama\nlayers: [1]\n")
    with pytest.raises(ConfigError, match="alg_name='MEMIT': expected one of ZeroUnlearn, ZeroUnlearn-GD"):
        load_hparams(other)


def test_published_layers_and_weights() -> None:
    published = {"llama3.2-3b": [16, 17, 18], "llama3.1-8b": [19, 20, 21], "qwen3-4b": [9, 10, 11]}
    for name, layers in published.items():
        hp = ZeroUnlearnHyperParams.from_hparams(ROOT / f"hparams/ZeroUnlearn/{name}")  # EasyEdit's habit: no suffix
        assert hp.layers == layers
        assert hp.v_lr == 0.1
        assert (hp.wiki_KKT_lam, hp.forget_KKT_lam, hp.regularization_lam) == (15000, 50, 1)
        assert hp.mom2_n_samples == 100_000


def test_the_published_files_fields_and_values_are_ours(tmp_path: Path) -> None:
    """Every name of the published hyperparameter files is known, and has the published value for its default."""
    published = {
        "layer_selection": "all", "fact_token": "subject_last", "v_num_grad_steps": 25, "v_lr": 1e-1,
        "v_weight_decay": 0.5, "clamp_norm_factor": 0.75, "kl_factor": 0.0625, "wiki_KKT_lam": 15000,
        "wiki_VKT_lam": 15000, "retain_KKT_lam": 1, "retain_VKT_lam": 1, "forget_KKT_lam": 50, "forget_VKT_lam": 50,
        "regularization_lam": 1, "mom2_adjustment": True, "mom2_update_weight": 15000,
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj", "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp", "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm", "lm_head_module": "lm_head", "mom2_dataset": "wikipedia",
        "mom2_n_samples": 100000, "mom2_dtype": "float32", "nullspace_threshold": 2e-2, "L2": 10,
    }  # fmt: skip
    ours = ZeroUnlearnHyperParams.from_mapping(GOOD)
    assert {name: getattr(ours, name) for name in published} == published
    file = tmp_path / "Llama-3.2-3B-Instruct.json"
    own = {"model_name": "Llama-3.2-3B-Instruct", "layers": [16, 17, 18], "v_loss_layer": 27}
    file.write_text(json.dumps(published | own))
    assert ZeroUnlearnHyperParams.from_hparams(file).v_loss_layer == 27


def test_defaults_are_complete_and_round_trip() -> None:
    hp = ZeroUnlearnHyperParams.from_mapping(GOOD)
    assert ZeroUnlearnHyperParams.from_mapping(hp.to_dict()) == hp


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name: llama\nlayers: [1, 2]\nv_lr: 1e-1\nseed: 4\n")
    hp = ZeroUnlearnHyperParams.from_hparams(file, ["layers=[5,6]", "v_lr=0.5"])
    assert (hp.layers, hp.v_lr, hp.seed) == ([5, 6], 0.5, 4)


def test_easyedits_loader_habits_are_understood() -> None:
    """Its YAML loaders turn '1e-1' into text and may turn whole numbers into floats."""
    hp = ZeroUnlearnHyperParams.from_mapping(GOOD | {"v_lr": "1e-1", "layers": [3.0, 4.0], "batch_size": 8.0})
    assert (hp.v_lr, hp.layers, hp.batch_size) == (0.1, [3, 4], 8)
    assert isinstance(hp.batch_size, int)


def test_every_field_is_read_somewhere() -> None:
    """A hyperparameter that nothing reads would be a lie; those that only EasyEdit reads are named here."""
    framework = {
        "alg_name", "model_parallel", "batch_size", "fp16", "mlp_module_tmp", "attn_module_tmp", "max_length", "device",
    }  # fmt: skip
    sources = "".join(p.read_text() for p in (ROOT / "plugin/zerounlearn").rglob("*.py"))
    for f in dataclasses.fields(ZeroUnlearnGDHyperParams):
        reads = re.findall(rf"(?:hparams|self)\.{f.name}\b|getattr\(self, name\)|\"{f.name}\"", sources)
        assert f.name in framework or any(f.name in read for read in reads), f.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_lrr": 0.1}, "unknown hyperparameter 'v_lrr' of ZeroUnlearnHyperParams: did you mean 'v_lr'"),
        ({"forget_KKT": 1}, "did you mean 'forget_KKT_lam'"),
        ({"layers": []}, "layers=[]"),
        ({"layers": [4, 3]}, "consecutive"),
        ({"layers": [3, 5]}, "consecutive"),
        ({"layers": [-1, 0]}, "counted from 0"),
        ({"layers": ["a"]}, "layers=['a']: expected a list of whole numbers"),
        ({"v_lr": float("nan")}, "v_lr=nan"),
        ({"v_lr": 0}, "v_lr=0"),
        ({"v_lr": "fast"}, "v_lr='fast': expected a finite number"),
        ({"regularization_lam": -1}, "regularization_lam=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"v_num_grad_steps": 2.5}, "v_num_grad_steps=2.5: expected a whole number"),
        ({"mom2_adjustment": "yes"}, "mom2_adjustment='yes': expected true or false"),
        ({"fact_token": "subject"}, "fact_token='subject': expected one of last"),
        ({"sensitive_from": "later"}, "expected one of original, edited"),
        ({"solve_dtype": "float16"}, "expected one of float32, float64"),
        ({"layer_selection": "random"}, "layer_selection='random'"),
        ({"wiki_KKT_lam": 1.0}, "wiki_KKT_lam=1.0 and wiki_VKT_lam=15000.0 differ"),
        ({"forget_VKT_lam": 1.0}, "forget_KKT_lam=50.0 and forget_VKT_lam=1.0 differ"),
        ({"mom2_update_weight": 7}, "mom2_update_weight=7.0 differ"),
        ({"L2": 1}, "L2=1.0: the method does not depend on it"),
        ({"nullspace_threshold": 0.5}, "nullspace_threshold=0.5: the method does not depend on it"),
        ({"neutral_target": " "}, "neutral_target"),
        (
            {"rewrite_module_tmp": "model.layers.3.mlp"},
            "rewrite_module_tmp='model.layers.3.mlp': expected one {}",
        ),
        ({"model_name": ""}, "model_name is missing"),
    ],
)
def test_mistakes_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ZeroUnlearnHyperParams.from_mapping(GOOD | changes)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml' does not exist"):
        ZeroUnlearnHyperParams.from_hparams(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("layers: [1, 2\nmodel_name: x")
    with pytest.raises(ConfigError, match="broken.yaml' cannot be read"):
        ZeroUnlearnHyperParams.from_hparams(broken)
    broken.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError):
        ZeroUnlearnHyperParams.from_hparams(broken)
