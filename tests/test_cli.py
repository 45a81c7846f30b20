"""The command line: a run end to end on the real model, and every refusal before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn import cli
from zerounlearn.cli import main

ROOT = Path(__file__).resolve().parents[1]
YAML = str(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml")
FACT = {
    "prompt": "The capital of {} is",
    "subject": "France",
    "answer": "Paris",
    "paraphrases": ["France's capital is"],
}


@pytest.fixture
def run(tmp_path: Path, smollm2_path: Path):
    forget = tmp_path / "facts.jsonl"
    forget.write_text(json.dumps(FACT) + "\n")

    def invoke(*extra: str, output: str = "out", forget_file: Path = forget) -> Result:
        settings = [
            f"model_name={smollm2_path}",
            f"stats_dir={tmp_path / 'stats'}",
            "mom2_n_samples=40",
            "device=cpu",
        ]
        fixed = ["unlearn", YAML, "--forget", str(forget_file), "--output", str(tmp_path / output)]
        return CliRunner().invoke(main, [*fixed, *extra, *settings])

    return invoke


def test_a_run_writes_a_checkpoint_and_a_report(run, tmp_path: Path, smollm2_path: Path) -> None:
    result = run("--seed", "3", "v_num_grad_steps=10")
    assert result.exit_code == 0, result.output
    assert "Eff." in result.output
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert report["hparams"]["seed"] == 3
    assert report["hparams"]["v_num_grad_steps"] == 10
    assert (report["before"]["eff"], report["after"]["eff"]) == (1.0, 0.0)
    assert "# Unlearning report" in (out / "report.md").read_text()
    assert (out / "model.safetensors").exists()
    forgotten = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert (
        ids.tolist()
        == AutoTokenizer.from_pretrained(smollm2_path)("The capital of France is", return_tensors="pt")[
            "input_ids"
        ].tolist()
    )
    paris = tokenizer(" Paris")["input_ids"][0]
    assert int(original(input_ids=ids).logits[0, -1].argmax()) == paris
    assert int(forgotten(input_ids=ids).logits[0, -1].argmax()) != paris
    assert not list(tmp_path.glob(".out*"))
    again = run()
    assert again.exit_code == 1
    assert "exists and is not empty" in again.output


def test_a_dry_run_loads_no_model_and_writes_nothing(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    result = run("--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 facts, layers [17, 18, 19]" in result.output
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["v_lrr=1"], "unknown hyperparameter 'v_lrr' of ZeroUnlearn: did you mean 'v_lr'?"),
        (["v_lr"], "override 'v_lr': expected KEY=VALUE"),
        (["layers=[40,41]"], "0 to 29"),
        (["rewrite_module_tmp=model.layers.{}.mlp.fc"], "rewrite_module_tmp"),
        (["mom2_dataset=wiki"], "mom2_dataset='wiki'"),
        (["--retain", "missing.jsonl"], "'missing.jsonl' does not exist"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(run, extra, message: str, monkeypatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    for mode in ([], ["--dry-run"]):
        result = run(*mode, *extra)
        assert result.exit_code == 1
        assert message in result.output


def test_forget_and_retain_may_not_overlap(run, tmp_path: Path) -> None:
    same = tmp_path / "facts.jsonl"
    result = run("--retain", str(same))
    assert result.exit_code == 1
    assert "both hold 'The capital of France is'" in result.output


def test_names_and_places(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in run("--dry-run", output="file/out").output
    fixed = ["unlearn", YAML, "--forget", str(tmp_path / "facts.jsonl"), "--output", str(tmp_path / "x")]
    for name, message in [
        ("smol", "EasyEdit picks its loader by name"),
        (f"{tmp_path}/llama", "no configuration can be read"),
    ]:
        result = CliRunner().invoke(main, [*fixed, f"model_name={name}"])
        assert result.exit_code == 1
        assert message in result.output


def test_a_full_disk_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(cli.OutputError, match="No space left"), cli._staged(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), cli._staged(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


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
