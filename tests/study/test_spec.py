"""A study's file: what it comes to, and every refusal before a model is loaded."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from tests.study.small_study import GRADIENT, checkpoint, write_study
from zerounlearn.cli import main
from zerounlearn.errors import ConfigError
from zerounlearn.study import spec
from zerounlearn.study.run import Plan
from zerounlearn.study.spec import load_study

ROOT = Path(__file__).resolve().parents[2]
GA = str(ROOT / "hparams/GA/smollm2-135m.yaml")
NPO = str(ROOT / "hparams/NPO/smollm2-135m.yaml")


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer) -> Path:
    return checkpoint(tmp_path_factory.mktemp("study") / "llama-tiny", small_tokenizer)


@pytest.fixture
def no_weights(monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))


def one(hparams: str, **settings: object) -> dict[str, object]:
    return {"methods": {"M": {"hparams": hparams, **settings}}}


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_lists_the_cells_and_writes_nothing(tmp_path: Path, model: Path) -> None:
    result = CliRunner().invoke(main, ["study", str(write_study(tmp_path, model)), "--dry-run", "seeds=[4,7,9]"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[-1] == "9 cells, 0 of them done: everything fits"
    assert [line.rsplit("-", 1)[0] for line in lines[:4]] == [
        "GA-facts-n3-s4", "NPO-facts-n3-s4", "ZeroUnlearn-facts-n3-s4", "GA-facts-n3-s7",
    ]  # fmt: skip
    assert len(set(lines)) == 10
    assert not (tmp_path / "out").exists()


def test_a_grid_makes_a_row_of_every_combination(tmp_path: Path, model: Path) -> None:
    grid = one(GA, set={"layers": [1]}, grid={"lr": [1e-4, 1e-2], "steps": [1, 2, 3]})
    study = load_study(write_study(tmp_path, model, seeds=[0], **grid))
    plan = Plan.of(study)
    assert [cell.cell.method for cell in plan.cells[:2]] == ["M lr=0.0001 steps=1", "M lr=0.0001 steps=2"]
    assert len({cell.id for cell in plan.cells}) == 6
    assert len({cell.base for cell in plan.cells}) == 1
    assert study.sweeps == {"M": tuple(cell.cell.method for cell in plan.cells)}
    assert not load_study(write_study(tmp_path, model, **one(GA, grid={"steps": [1]}))).sweeps


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seedz": [1]}, "unknown setting 'seedz': did you mean 'seeds'?"),
        ({"seeds": [1, 1]}, "a value is named twice"),
        ({"seeds": [-1]}, r"seeds=-1: expected a whole number >= 0"),
        ({"sizes": []}, "expected a list of at least one"),
        ({"sizes": [7]}, r"datasets.facts: n=7: expected 1 to 6, the forget half of 12 entries"),
        ({"model": {"name": "gone/away/llama"}}, "model.name='gone/away/llama': there is no such folder"),
        ({"model": {"dtype": "float32"}}, "model.name is missing"),
        ({"model": {"name": "x", "dtyp": "float32"}}, "model: unknown setting 'dtyp': did you mean 'dtype'?"),
        ({"model": {"name": "x", "dtype": "int8"}}, "model.dtype='int8': expected one of float32"),
        ({"datasets": {}}, "datasets={}: expected at least one entry"),
        ({"datasets": {"d": {"name": "mfc", "source": "x"}}}, "datasets.d: no data set 'mfc'"),
        ({"datasets": {"d": {"name": "mcf", "source": "gone.json"}}}, "d: 'gone.json' does not exist"),
        ({"datasets": {"d": {"name": "embedded", "options": {"facts": "test"}}}}, "facts='test': Input should be"),
        (one("gone.yaml"), "methods.M: hparams file 'gone.yaml' does not exist"),
        (one(GA, set={"lrr": 1}), "methods.M: .*unknown hyperparameter 'lrr' of GA: did you mean 'lr'?"),
        (one(GA, set={"device": "cpu"}), "set device by model.device"),
        (one(GA, set={"seed": 1}), "set seed by seeds"),
        (one(GA, set={"layers": [9]}), "methods.M: .*9"),
        (one(GA, retain=True), "retain=true: GA has no retain term"),
        (one(GA, retain="yes"), "methods.M.retain='yes': expected true or false"),
        (one(GA, sett={}), "methods.M: unknown setting 'sett': did you mean 'set'?"),
        (one(GA, grid={"lr": 1e-3}), "grid.lr=0.001: expected a list of values"),
        (one(GA, set={"lr": 1}, grid={"lr": [1]}), "lr is both in set and in grid"),
        (one(NPO, set=GRADIENT), "retain_weight=1 with retain=false means nothing: set retain: true"),
        (one(NPO, retain=True, set={**GRADIENT, "retain_path": "x.jsonl"}), "a study draws the retain set itself"),
        (one(NPO, retain=True, set={**GRADIENT, "retain_weight": 0}), "drop retain: true"),
        ({"reference_method": "GAA"}, "reference_method='GAA' is no method of this study: did you mean 'GA'?"),
        ({"highlight": "Zero"}, "highlight='Zero' is no method of this study: choose one of"),
        (one(GA, sweep="M"), "methods.M: unknown setting 'sweep'"),
        ({"metrics": ["rouge"]}, "unknown 'rouge': did you mean 'rouge_l'?"),
        ({"metrics": ["forget_quality"]}, "name it with reference_model"),
        ({"metrics": ["model_utility"]}, "needs a data set with `utility`"),
        ({"held_out": {"text": "gone.txt"}}, "gone.txt"),
        ({"retain_size": -1}, "retain_size=-1: expected a whole number >= 0"),
        ({"retain_size": True}, "retain_size=True: expected a whole number"),
        ({"audit": {"budget": "huge"}}, "audit: budget='huge': expected quick"),
        ({"audit": {"attacks": ["plane"]}}, "audit: attacks: unknown 'plane': did you mean 'plain'"),
        ({"audit": {"without": ["plane"]}}, "audit: .*did you mean 'plain'"),
        ({"audit": {"controls": 0}}, "audit.controls=0"),
        ({"audit": {"disruption": 0.0}}, "audit.disruption=0.0: expected a number above 0"),
        ({"audit": {"disruption": "x"}}, "audit.disruption='x': expected a number"),
        ({"audit": {"disruption": 0.1}, "held_out": {"text": None}}, "audit.disruption is measured on held_out.text"),
        ({"audit": {"budgets": "quick"}}, "audit: unknown setting 'budgets': did you mean 'budget'"),
        ({"lm_eval": {"tasks": "mmlu"}}, "lm_eval.tasks='mmlu': expected a list"),
        ({"lm_eval": {"tasks": ["mmlu"], "folder": "gone"}}, "lm_eval: folder='gone' is not a folder"),
        ({"lm_eval": {"tasks": ["helaswag"]}}, "lm_eval: .*'helaswag'.* did you mean 'hellaswag'"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_the_model_is_loaded(tmp_path: Path, model: Path, changes, message: str) -> None:
    result = CliRunner().invoke(main, ["study", str(write_study(tmp_path, model, **changes))])
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output
    assert not (tmp_path / "out").exists()


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml' does not exist"):
        load_study(tmp_path / "gone.yaml")
    (tmp_path / "empty.yaml").write_text("title: x\n")
    with pytest.raises(ConfigError, match="model is missing"):
        load_study(tmp_path / "empty.yaml")
    result = CliRunner().invoke(main, ["study", str(tmp_path / "empty.yaml"), "seeds"])
    assert "override 'seeds': expected KEY=VALUE" in result.output


def test_two_rows_of_one_name_are_refused(tmp_path: Path, model: Path) -> None:
    methods = {"A": {"hparams": GA, "grid": {"steps": [1]}}, "A steps=1": {"hparams": GA}}
    with pytest.raises(ConfigError, match="two methods are called 'A steps=1'"):
        load_study(write_study(tmp_path, model, methods=methods))


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_well_formed(path: Path) -> None:
    study = load_study(path)
    assert study.title != path.stem
    assert all((ROOT / method.hparams).is_file() for method in study.methods)
    assert yaml.safe_load(path.read_text())["output"] == f"outputs/studies/{path.stem}"


@pytest.mark.parametrize("part", ["methods", "datasets"])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("base", "is the name of the base model's row"),
        (" Base ", "is the name of the base model's row"),
        ("a\x00b", "U\\+0000 at position 1"),
        ("a\x1bb", "U\\+001B"),
        ("\ufffe", "U\\+FFFE"),
        ("\u200b", "is empty"),
    ],
)
def test_labels_that_no_table_can_show_are_refused_before_a_cell_runs(
    tmp_path: Path, model: Path, part: str, label: str, message: str
) -> None:
    study = load_study(write_study(tmp_path, model, **one(GA)))
    changed = {part: tuple(dataclasses.replace(row, label=label) for row in getattr(study, part))}
    with pytest.raises(ConfigError, match=message):
        spec._check(dataclasses.replace(study, **changed), "study")
