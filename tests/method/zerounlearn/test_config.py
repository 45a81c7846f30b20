"""Hyperparameters: every field read somewhere, every mistake named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.errors import ConfigError
from zerounlearn.method.base import load_method, methods
from zerounlearn.method.zerounlearn.config import ZeroUnlearn, ZeroUnlearnGD
from zerounlearn.model.families import families

ROOT = Path(__file__).resolve().parents[3]
GOOD = {"model_name": "models/llama-x", "layers": [3, 4]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


NAMES = ("ZeroUnlearn", "ZeroUnlearn-GD")
FILES = sorted(file for name in NAMES for file in (ROOT / "hparams" / name).glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_file_loads(file: Path) -> None:
    hp = load_method(file)
    assert hp.alg_name == file.parent.name
    assert isinstance(hp, methods[hp.alg_name])
    assert (hp.v_num_grad_steps, hp.clamp_norm_factor, hp.kl_factor) == (25, 0.75, 0.0625)


def test_the_gradient_variants_own_fields(tmp_path: Path) -> None:
    hp = load_method(ROOT / "hparams/ZeroUnlearn-GD/smollm2-135m.yaml", ["solver=adam", "nullspace_rule=energy"])
    assert isinstance(hp, ZeroUnlearnGD)
    assert (hp.solver, hp.gd_steps, hp.gd_lr, hp.target_weight, hp.norm_weight) == ("adam", 500, 1e-3, 100, 0.1)
    for changes, message in [
        ({"solver": "sgd"}, "solver='sgd': expected one of exact, adam"),
        ({"nullspace_rule": "share"}, "nullspace_rule='share'"),
        ({"norm_weight": 0}, "norm_weight=0.0: expected a number > 0"),
        ({"sensitive_weight": -1}, "sensitive_weight=-1.0"),
        ({"wiki_KKT_lam": 1, "wiki_VKT_lam": 1}, "wiki_KKT_lam=1: the method does not depend"),
        ({"mom2_adjustment": False}, "mom2_adjustment=False: ZeroUnlearn-GD keeps what C uses"),
        ({"alg_name": "ZeroUnlearn"}, "hyperparameters of 'ZeroUnlearn-GD'"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            ZeroUnlearnGD.from_mapping(GOOD | changes)
    other = tmp_path / "other.yaml"
    other.write_text("alg_name: MEMITT\nmodel_name: llama\nlayers: [1]\n")
    with pytest.raises(ConfigError, match="alg_name='MEMITT': no method 'MEMITT': did you mean 'MEMIT'"):
        load_method(other)


def test_published_layers_and_weights() -> None:
    published = {"llama3.2-3b": [16, 17, 18], "llama3.1-8b": [19, 20, 21], "qwen3-4b": [9, 10, 11]}
    for name, layers in published.items():
        hp = ZeroUnlearn.from_hparams(ROOT / f"hparams/ZeroUnlearn/{name}")  # EasyEdit's habit: no suffix
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
        "ln_f_module": "model.norm", "lm_head_module": "lm_head", "mom2_dtype": "float32",
        "nullspace_threshold": 2e-2, "L2": 10,
    }  # fmt: skip
    ours, family = ZeroUnlearn.from_mapping(GOOD), families["llama"]
    dropped = ZeroUnlearn.WITHOUT_EFFECT
    for name, value in published.items():
        field = ZeroUnlearn.ALIASES.get(name, name)
        own = dropped[name] if name in dropped else getattr(ours, field)
        assert (getattr(family, field) if own is None else own) == value, name
    assert ZeroUnlearn.from_mapping(GOOD | published) == ZeroUnlearn.from_mapping(GOOD | {
        name: value for name, value in published.items() if name.endswith(("_tmp", "_module"))
    })  # fmt: skip
    file = tmp_path / "Llama-3.2-3B-Instruct.json"
    own = {"model_name": "Llama-3.2-3B-Instruct", "layers": [16, 17, 18], "v_loss_layer": 27}
    file.write_text(json.dumps(published | own))
    assert ZeroUnlearn.from_hparams(file).v_loss_layer == 27


def test_defaults_are_complete_and_round_trip() -> None:
    hp = ZeroUnlearn.from_mapping(GOOD)
    assert ZeroUnlearn.from_mapping(hp.to_dict()) == hp


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name: llama\nlayers: [1, 2]\nv_lr: 1e-1\nseed: 4\n")
    hp = ZeroUnlearn.from_hparams(file, ["layers=[5,6]", "v_lr=0.5"])
    assert (hp.layers, hp.v_lr, hp.seed) == ([5, 6], 0.5, 4)


def test_easyedits_loader_habits_are_understood() -> None:
    """Its YAML loaders turn '1e-1' into text and may turn whole numbers into floats."""
    hp = ZeroUnlearn.from_mapping(GOOD | {"v_lr": "1e-1", "layers": [3.0, 4.0], "batch_size": 8.0})
    assert (hp.v_lr, hp.layers, hp.batch_size) == (0.1, [3, 4], 8)
    assert isinstance(hp.batch_size, int)


PRESET = ZeroUnlearn.PRESETS["specific-1"]


def test_an_explicit_value_wins_over_its_preset(tmp_path: Path) -> None:
    """From Python, from a file, from an override, and through `replace`: also where it is the published default."""
    assert ZeroUnlearn(layers=[1], preset="specific-1").strength == PRESET["strength"] == 0.85
    assert ZeroUnlearn(preset="specific-1", layers=[1], strength=1.0).strength == 1.0
    file = tmp_path / "run.yaml"
    file.write_text("model_name: x\nlayers: [1]\npreset: specific-1\nstrength: 1.0\nregularization_lam: 1\n")
    hp = ZeroUnlearn.from_hparams(file)
    assert (hp.strength, hp.regularization_lam, hp.forget_KKT_lam) == (1.0, 1.0, 500.0)
    assert ZeroUnlearn.from_hparams(file, ["strength=0.5"]).strength == 0.5
    specific = ZeroUnlearn(layers=[1], preset="specific-1")
    assert dataclasses.replace(specific, strength=1.0).strength == 1.0
    assert dataclasses.replace(specific, strength=1.0).regularization_lam == 60.0
    assert specific.replace(strength=1.0).strength == 1.0
    assert specific.replace(preset="paper") == ZeroUnlearn(layers=[1])
    with pytest.raises(ConfigError, match="preset='specific-1' would change nothing"):
        dataclasses.replace(ZeroUnlearn(layers=[1]), preset="specific-1")


def test_a_files_own_presets_stand_between_the_classs_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name: x\npresets:\n  paper: {layers: [3]}\n  specific-1: {layers: [1, 2], strength: 0.7}\nv_lr: 0.3\n"
    )
    assert ZeroUnlearn.from_hparams(file).layers == [3]
    specific = ZeroUnlearn.from_hparams(file, ["preset=specific-1"])
    assert (specific.layers, specific.strength, specific.v_lr) == ([1, 2], 0.7, 0.3)
    assert ZeroUnlearn.from_hparams(file, ["preset=specific-1", "strength=1"]).strength == 1.0
    file.write_text("model_name: x\nlayers: [3]\npreset: specific-1\npresets:\n  specific-1: {layers: [1, 2]}\n")
    with pytest.raises(ConfigError, match="layers is set twice, by itself and in presets.specific-1"):
        ZeroUnlearn.from_hparams(file)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ZeroUnlearn(layers=[1]).strength = 2.0  # type: ignore[misc]


def test_a_published_gd_file_does_not_set_the_threshold_that_its_code_ignores() -> None:
    published = GOOD | {"nullspace_threshold": 2e-2, "L2": 10, "wiki_KKT_lam": 15000, "layer_selection": "all"}
    assert ZeroUnlearnGD.from_mapping(published).nullspace_threshold == 1e-2
    assert ZeroUnlearnGD.from_mapping(GOOD | {"nullspace_threshold": 2e-2}).nullspace_threshold == 2e-2


def test_interpolations_and_aliases_are_not_resolved(tmp_path: Path) -> None:
    """What an environment variable holds has no place in a report, and 400 bytes of aliases no limit."""
    file = tmp_path / "run.yaml"
    file.write_text("model_name: ${oc.env:HOME}\nlayers: [1]\n")
    with pytest.raises(ConfigError, match=r"run.yaml': model_name='\$\{oc.env:HOME\}': interpolation"):
        ZeroUnlearn.from_hparams(file)
    file.write_text("model_name: x\nlayers: [1]\n")
    with pytest.raises(ConfigError, match="interpolation"):
        ZeroUnlearn.from_hparams(file, ["neutral_target=${oc.env:HOME}"])
    nested = "".join(f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9))
    file.write_text(f"{nested}model_name: x\n")
    with pytest.raises(ConfigError, match="aliases"):
        ZeroUnlearn.from_hparams(file)


@given(st.dictionaries(st.sampled_from([*sorted(ZeroUnlearn.fields()), "presets", "nonsense"]), JSON, max_size=4))
def test_any_mapping_is_read_or_refused_in_one_sentence(values: dict) -> None:
    message = "run.yaml: "
    try:
        ZeroUnlearn.from_mapping(GOOD | values, where="run.yaml")
    except ConfigError as error:
        message = str(error)
    assert message.startswith("run.yaml: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_lrr": 0.1}, "unknown hyperparameter 'v_lrr' of ZeroUnlearn: did you mean 'v_lr'"),
        ({"preset": ["specific"]}, "preset=['specific']: expected one of paper, specific"),
        ({"presets": 3}, "presets=3: expected values by preset"),
        ({"presets": {"paper": [1]}}, "presets.paper=[1]: expected values by preset"),
        ({"presets": {"papier": {}}}, "presets.papier"),
        ({"model_name": 3}, "model_name=3"),
        ({"device": {"a": 1}}, "device={'a': 1}"),
        ({"seed": 2**64}, "seed=18446744073709551616: expected a whole number <= 9.22337e+18"),
        ({"seed": 10**400}, "expected a whole number"),
        ({"v_lr": 10**400}, "expected a finite number"),
        ({"rewrite_module_tmp": "m.{}{x}"}, "rewrite_module_tmp='m.{}{x}': expected one {}"),
        ({"layer_module_tmp": "m.{}{"}, "layer_module_tmp='m.{}{': expected one {}"),
        ({"ln_f_module": ""}, "ln_f_module=''"),
        ({"forget_KKT": 1}, "did you mean 'forget_KKT_lam'"),
        ({"layers": [4, 3]}, "consecutive"),
        ({"layers": [3, 5]}, "consecutive"),
        ({"layers": [-1, 0]}, "counted from 0"),
        ({"layers": ["a"]}, "layers=['a']: expected a list of whole numbers"),
        ({"v_lr": float("nan")}, "v_lr=nan"),
        ({"v_lr": 0}, "v_lr=0"),
        ({"v_lr": "fast"}, "v_lr='fast': expected a finite number"),
        ({"layers": "all"}, "layers='all': expected a list of whole numbers"),
        ({"regularization_lam": -1}, "regularization_lam=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"v_num_grad_steps": 2.5}, "v_num_grad_steps=2.5: expected a whole number"),
        ({"mom2_adjustment": "yes"}, "mom2_adjustment='yes': expected true or false"),
        ({"fact_token": "subject"}, "fact_token='subject': expected one of last"),
        ({"sensitive_from": "later"}, "expected one of original, edited"),
        ({"solve_dtype": "float16"}, "expected one of float32, float64"),
        ({"layer_selection": "random"}, "layer_selection='random'"),
        ({"wiki_KKT_lam": 1.0, "wiki_VKT_lam": 2}, "wiki_KKT_lam=1.0 and wiki_VKT_lam=2 differ"),
        ({"forget_KKT_lam": 50.0, "forget_VKT_lam": 1.0}, "forget_KKT_lam=50.0 and forget_VKT_lam=1.0 differ"),
        ({"wiki_KKT_lam": 8, "mom2_update_weight": 7}, "wiki_KKT_lam=8 and mom2_update_weight=7 differ"),
        ({"L2": 1}, "L2=1: the method does not depend on it"),
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
        ZeroUnlearn.from_mapping(GOOD | changes)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml' does not exist"):
        ZeroUnlearn.from_hparams(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("layers: [1, 2\nmodel_name: x")
    with pytest.raises(ConfigError, match="broken.yaml' cannot be read"):
        ZeroUnlearn.from_hparams(broken)
    broken.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError):
        ZeroUnlearn.from_hparams(broken)
