"""The command line: a run end to end on the real model, and every refusal before the model is loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import tiny
from zerounlearn.cli import main
from zerounlearn.errors import OutputError
from zerounlearn.files import MARKER

ROOT = Path(__file__).resolve().parents[1]
YAML = str(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml")
FACT = {
    "prompt": "The capital of {} is",
    "subject": "France",
    "answer": "Paris",
    "paraphrases": ["France's capital is"],
}


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps(FACT) + "\n")
    return file


@pytest.fixture
def run(tmp_path: Path, smollm2_path: Path, facts: Path):
    def invoke(*extra: str, output: str = "out", forget_file: Path = facts) -> Result:
        settings = [
            f"model_name={smollm2_path}",
            f"stats_dir={tmp_path / 'stats'}",
            "mom2_n_samples=40",
            "device=cpu",
        ]
        fixed = ["unlearn", YAML, "--forget", str(forget_file), "--output", str(tmp_path / output)]
        return CliRunner().invoke(main, [*fixed, *extra, *settings])

    return invoke


@pytest.fixture
def small(tmp_path: Path, small_tokenizer: Any, facts: Path):
    """The command on a random model of a family and a folder name that EasyEdit's loaders do not know."""
    folder = tmp_path / "somebodys-model"
    tiny("qwen3", len(small_tokenizer), dtype=torch.float32).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)

    def command(*extra: str, output: str | Path = "out", method: str = "GA", **changes: object) -> list[str]:
        yaml = tmp_path / f"{method}.yaml"
        fixed = {"alg_name": method, "model_name": str(folder), "layers": [1], "device": "cpu"}
        zerounlearn = {"mom2_adjustment": False, "v_num_grad_steps": 3}
        fixed |= zerounlearn if method == "ZeroUnlearn" else {"steps": 2}
        yaml.write_text(json.dumps(fixed | changes))
        place = tmp_path / output if output else output
        return ["unlearn", str(yaml), "--forget", str(facts), "--output", str(place), *extra]

    return command


def test_a_run_writes_a_checkpoint_and_a_report_beside_it(run, tmp_path: Path, smollm2_path: Path) -> None:
    result = run("--seed", "3", "v_num_grad_steps=10")
    assert result.exit_code == 0, result.output
    assert "Eff." in result.output
    out, reports = tmp_path / "out", tmp_path / "out-report"
    report = json.loads((reports / "report.json").read_text())
    assert report["hparams"]["seed"] == 3
    assert report["hparams"]["v_num_grad_steps"] == 10
    assert (report["before"]["eff"], report["after"]["eff"]) == (1.0, 0.0)
    assert "# Unlearning report" in (reports / "report.md").read_text()
    assert not list(out.glob("report*"))
    secret = b"France"  # the facts in clear lie in the report alone
    assert not [f.name for f in out.iterdir() if f.suffix not in (".json", ".txt") and secret in f.read_bytes()]
    forgotten = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    expected = AutoTokenizer.from_pretrained(smollm2_path)("The capital of France is", return_tensors="pt")["input_ids"]
    assert ids.tolist() == expected.tolist()
    paris = tokenizer(" Paris")["input_ids"][0]
    assert int(original(input_ids=ids).logits[0, -1].argmax()) == paris
    assert int(forgotten(input_ids=ids).logits[0, -1].argmax()) != paris
    assert not list(tmp_path.glob(".out*"))
    again = run()
    assert again.exit_code == 1
    assert "exists and is not empty" in again.output


def test_a_dry_run_loads_no_model_and_writes_nothing(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    before = sorted(tmp_path.iterdir())
    result = run("--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 facts, layers [17, 18, 19]" in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["v_lrr=1"], "unknown hyperparameter 'v_lrr' of ZeroUnlearn: did you mean 'v_lr'?"),
        (["v_lr"], "override 'v_lr': expected KEY=VALUE"),
        (["layers=[40,41]"], "0 to 29"),
        (["rewrite_module_tmp=model.layers.{}.mlp.fc"], "rewrite_module_tmp"),
        (["mom2_dataset=wiki"], "mom2_dataset='wiki'"),
        (["--retain", "missing.jsonl"], "'missing.jsonl' does not exist"),
        (["add_retain=true"], "add_retain=True: there is no retain set: set retain_set, hand one over"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(run, extra, message: str, monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    for mode in ([], ["--dry-run"]):
        result = run(*mode, *extra)
        assert result.exit_code == 1
        assert message in result.output


def test_forget_and_retain_may_not_overlap(small, facts: Path) -> None:
    result = CliRunner().invoke(main, small("--retain", str(facts)))
    assert result.exit_code == 1
    assert "both hold 'The capital of France is'" in result.output


def test_a_retain_set_and_the_method_fit_each_other(small, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps(FACT | {"subject": "Poland", "answer": "Warsaw", "paraphrases": []}) + "\n")
    for method, extra, message in (
        ("GA", ["--retain", str(kept)], "GA has no retain term, so a retain set would change nothing"),
        ("NPO", [], "retain_weight=1: NPO needs a retain set: name one with retain_path (or `retain=`, --retain)"),
    ):
        result = CliRunner().invoke(main, small("--dry-run", *extra, method=method))
        assert result.exit_code == 1 and message in result.output
    for settings in ([f"retain_path={kept}"], ["retain_weight=0"], ["--retain", str(kept)]):
        result = CliRunner().invoke(main, small("--dry-run", *settings, method="NPO"))
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_output_never_takes_the_place_of_what_a_run_reads(small, tmp_path: Path, facts: Path, overwrite) -> None:
    """`--output .`, an unset variable, the model's folder, one that holds the facts: all there afterwards."""
    content = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for place, message in [
        (tmp_path, "was not written by zerounlearn|holds the model"),
        (tmp_path / "somebodys-model", "holds the model"),
        ("", "is empty: name a new folder"),
        (tmp_path / "facts.jsonl", "is a file"),
    ]:
        result = CliRunner().invoke(main, [*small(output=place), *overwrite, "--dry-run"])
        assert result.exit_code == 1, result.output
        assert any(part in result.output for part in message.split("|")), result.output
        result = CliRunner().invoke(main, [*small(output=place), *overwrite])
        assert result.exit_code == 1
    made = {p for p in tmp_path.rglob("*") if p.is_file()} - set(content)
    assert {p.name for p in made} <= {"GA.yaml"}
    assert {p: p.read_bytes() for p in content} == content


def test_any_method_and_any_models_name_and_an_output_is_replaced_as_a_whole(small, tmp_path: Path) -> None:
    for method in ("GA", "ZeroUnlearn"):
        result = CliRunner().invoke(main, [*small(method=method), "--overwrite"])
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out" / MARKER).is_file()
        report = json.loads((tmp_path / "out-report/report.json").read_text())
        assert report["hparams"]["alg_name"] == method
    assert not list(tmp_path.glob(".out*"))


def test_two_runs_with_one_output(small, tmp_path: Path) -> None:
    """The later says that its place is taken, and where its result lies."""
    from zerounlearn.files import whole_folder

    with pytest.raises(OutputError, match="filled meanwhile"), whole_folder(tmp_path / "out"):
        assert CliRunner().invoke(main, small()).exit_code == 0
    assert (tmp_path / "out/model.safetensors").is_file()


def test_terminated_a_run_leaves_the_old_output_and_no_staging(small, tmp_path: Path) -> None:
    assert CliRunner().invoke(main, small()).exit_code == 0
    old = (tmp_path / "out/model.safetensors").read_bytes()
    command = [sys.executable, "-m", "zerounlearn", *small("--overwrite", steps=100_000)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(tmp_path.glob(".out*")):
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert (tmp_path / "out/model.safetensors").read_bytes() == old
    assert not list(tmp_path.glob(".out*"))


def test_a_failing_save_keeps_report_and_edit(small, tmp_path: Path, monkeypatch) -> None:
    from zerounlearn.method.edit import Edit
    from zerounlearn.model import loading

    def full(*_: Any) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(loading, "save_checkpoint", full)
    result = CliRunner().invoke(main, small())
    assert result.exit_code == 1
    assert "the report is in" in result.output
    assert (tmp_path / "out-report/report.json").is_file()
    assert Edit.load(tmp_path / "out-report/edit.safetensors").method == "GA"
    assert not (tmp_path / "out").exists()


def test_a_fact_that_the_model_never_said_is_a_warning_or_an_error(small, tmp_path: Path) -> None:
    quiet = CliRunner().invoke(main, small())
    assert quiet.exit_code == 0
    assert "the model says 0 of the 1 answers" in quiet.output
    result = CliRunner().invoke(main, small("--require-known", output="other"))
    assert result.exit_code == 1
    assert "the model says 0 of the 1 answers" in result.output
    assert not (tmp_path / "other").exists()


def test_a_requirement_that_is_not_met_has_an_exit_code_of_its_own(small, tmp_path: Path) -> None:
    met = CliRunner().invoke(main, small("--require", "eff<=0", output="met"))
    assert met.exit_code == 0
    result = CliRunner().invoke(main, small("--require", "eff<=0", "--require", "spe_unrelated>=0.5", output="other"))
    assert result.exit_code == 3
    assert "required spe_unrelated>=0.5: not measured, not met" in result.output
    assert (tmp_path / "other/model.safetensors").is_file(), "the work is kept"
    report = json.loads((tmp_path / "other-report/report.json").read_text())
    assert [(one["text"], one["met"]) for one in report["requirements"]] == [
        ("eff<=0", True),
        ("spe_unrelated>=0.5", False),
    ]
    wrong = CliRunner().invoke(main, small("--require", "efff<=0.05", output="wrong"))
    assert (wrong.exit_code, "did you mean 'eff'?" in wrong.output) == (1, True)
    assert not (tmp_path / "wrong").exists()


def test_a_prompt_longer_than_the_model_reads(small, facts: Path) -> None:
    long = FACT | {"prompt": "You are a reader of it. " * 100 + "The capital of {} is"}
    facts.write_text(json.dumps(long) + "\n")
    result = CliRunner().invoke(main, small("--dry-run"))
    assert result.exit_code == 1
    assert "the model has places for 64: shorten it" in result.output


def test_devices_and_wrapping_methods_are_refused_early(small) -> None:
    result = CliRunner().invoke(main, [*small("--dry-run"), "device=banana"])
    assert (result.exit_code, "device='banana'" in result.output) == (1, True)


LIGHT = """
import sys
from zerounlearn.cli import main
try:
    main(ARGUMENTS)
except SystemExit:
    pass
heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'easyeditor'} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["unlearn", "--help"], ["study", "--help"], ["hparams", "list"]]
)
def test_help_and_version_import_nothing_heavy(args: list[str]) -> None:
    subprocess.run([sys.executable, "-c", LIGHT.replace("ARGUMENTS", repr(args))], check=True, capture_output=True)


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    code = LIGHT.replace("ARGUMENTS", "prog_name='zerounlearn'")
    environment = os.environ | {
        "_ZEROUNLEARN_COMPLETE": "bash_complete", "COMP_WORDS": "zerounlearn unl", "COMP_CWORD": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert "unlearn" in done.stdout


WITHOUT_EASYEDIT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'easyeditor':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from zerounlearn.cli import main
main()
"""


def test_the_program_needs_no_easyedit(small, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EASYEDIT, *small(method="ZeroUnlearn")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file()
    assert "evaluation: " in done.stderr, "a line a stage where there is no terminal"
    listed = subprocess.run(
        [sys.executable, "-c", WITHOUT_EASYEDIT, "list", "methods"], capture_output=True, text=True, check=True
    )
    assert "MEMIT" in listed.stdout


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", ["ZeroUnlearn", "NPO", "SimNPO", "MEMIT"]),
        ("metrics", ["eff", "rouge_l", "forget_quality"]),
        ("datasets", ["zsre", "tofu", "embedded"]),
        ("families", ["llama", "gpt2"]),
        ("presets", ["ZeroUnlearn preset=specific"]),
        ("studies", ["quick", "fronts"]),
    ],
)
def test_what_there_is_is_listed(kind: str, names: list[str]) -> None:
    result = CliRunner().invoke(main, ["list", kind])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    for name in names:
        assert any(line.startswith(name) for line in lines), (name, lines)


def test_a_methods_hyperparameters_are_shown(tmp_path: Path, monkeypatch) -> None:
    result = CliRunner().invoke(main, ["show", "ZeroUnlearn"])
    assert result.exit_code == 0, result.output
    assert "v_lr = 0.1  (> 0)\n    Adam's learning rate" in result.output
    assert "orthogonality = output  (output | " in result.output
    wrong = CliRunner().invoke(main, ["show", "ZeroUnlern"])
    assert (wrong.exit_code, "did you mean 'ZeroUnlearn'" in wrong.output) == (1, True)
    monkeypatch.chdir(tmp_path)
    copied = CliRunner().invoke(main, ["hparams", "copy", "NPO/smollm2-135m"])
    assert copied.exit_code == 0, copied.output
    assert (tmp_path / "NPO-smollm2-135m.yaml").read_text() == (ROOT / "hparams/NPO/smollm2-135m.yaml").read_text()
    assert CliRunner().invoke(main, ["hparams", "copy", "NPO/smollm2-135m"]).exit_code == 1
    unknown = CliRunner().invoke(main, ["hparams", "show", "NPO/smollm2-135"])
    assert "did you mean 'NPO/smollm2-135m'" in unknown.output


def test_a_damaged_model_is_one_sentence_and_debug_shows_where(small, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    result = CliRunner().invoke(main, [*small("-q", "--debug"), f"model_name={tmp_path}/gone"])
    assert "models fetch" in str(result.exception)
    result = CliRunner().invoke(main, [*small("-q"), f"model_name={tmp_path}/gone"])
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1


def test_stats_and_models(tmp_path: Path, smollm2_path: Path) -> None:
    settings = [
        f"model_name={smollm2_path}",
        f"stats_dir={tmp_path}",
        "mom2_n_samples=4",
        "device=cpu",
        "layers=[1]",
    ]
    result = CliRunner().invoke(main, ["stats", YAML, *settings])
    assert result.exit_code == 0, result.output
    assert "layer 1: (1536, 1536)" in result.output
    assert list(tmp_path.rglob("model.layers.1.mlp.down_proj_float32_mom2_4.npz"))
    fetched = CliRunner().invoke(main, ["models", "fetch", "smollm2-135m", "--to", str(smollm2_path)])
    assert fetched.exit_code == 0, fetched.output
    assert str(smollm2_path) in fetched.output
