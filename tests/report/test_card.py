"""Model cards and uploads: the card says what was done and measured, and no fact in clear leaves by either."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.cli import main
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ConfigError, OutputError
from zerounlearn.method.export import export_peft
from zerounlearn.model.lineage import whole_checkpoint
from zerounlearn.model.loading import save_checkpoint
from zerounlearn.report.card import described, facts_digest, model_card, read_report
from zerounlearn.report.hub import check_publishable, push

SECRETS = [word for fact in FACTS for word in (fact.subject, fact.answer)]


@pytest.fixture(scope="module")
def made(small_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit, its checkpoint with the report beside it, and its adapter."""
    folder = tmp_path_factory.mktemp("secret-place")
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    method = zu.ZeroUnlearn(
        layers=[1, 2], v_num_grad_steps=3, mom2_adjustment=False, stats_dir=str(folder / "stats"), model_name="x/tiny"
    )
    facts = [Fact(FACTS[0], ("France's capital is",)), *map(Fact, FACTS[1:])]
    report, edit = zu.unlearn_and_report(model, small_tokenizer, facts, method, text=["The weather was fine."])
    report.save(folder / "out-report")
    edit.save(folder / "edit.safetensors")
    with whole_checkpoint(folder / "out") as staged:
        save_checkpoint(model, small_tokenizer, staged)
    edit.revert(model)
    export_peft(edit, folder / "adapter", model)
    return folder


@pytest.mark.parametrize(
    ("source", "library"), [("edit.safetensors", "zerounlearn"), ("out", "transformers"), ("adapter", "peft")]
)
def test_a_card_says_what_was_done_and_measured_and_no_fact(
    source: str, library: str, made: Path, tmp_path: Path
) -> None:
    place, report = tmp_path / "README.md", read_report(made / "out-report")
    command = ["card", str(made / source), "--output", str(place), "--report", str(made / "out-report")]
    result = CliRunner().invoke(main, [*command, "--base", "somebody/tiny", "--license", "apache-2.0"])
    assert result.exit_code == 0, result.output
    card = ModelCard.load(place)
    assert (card.data.base_model, card.data.license) == ("somebody/tiny", "apache-2.0")
    assert (card.data.library_name, "machine-unlearning" in card.data.tags) == (library, True)
    assert "| method | ZeroUnlearn (arXiv 2605.18879) |" in card.text
    assert "`model.layers.1.mlp.down_proj.weight`<br>`model.layers.2.mlp.down_proj.weight`" in card.text
    assert "layers=[1, 2]" in card.text
    assert "| facts forgotten | 3 |" in card.text
    assert facts_digest((f.prompt, f.answer) for f in FACTS[::-1]) in card.text, "in whatever order"
    before, after = (report[phase]["ppl"] for phase in ("before", "after"))
    assert f"| PPL ↓ | {before:.2f} | {after:.2f} | – |" in card.text
    assert f"| Gen. ↓ | {100 * report['before']['gen']:.1f} | {100 * report['after']['gen']:.1f} | 1 |" in card.text
    for word in [*SECRETS, "secret", str(made)]:
        assert word not in str(card)
    again = CliRunner().invoke(main, command)
    assert (again.exit_code, "exists: name another file" in again.output) == (1, True)


def test_what_is_not_known_is_not_said(made: Path) -> None:
    card = model_card(described(made / "edit.safetensors"))
    assert "facts forgotten" not in card.text
    assert "Before and after" not in card.text
    assert "| base model | not named |" in card.text
    assert card.data.base_model is None
    with pytest.raises(ConfigError, match="does not say by which method it was made: pass --report"):
        model_card(described(made / "out"))


def test_what_is_no_edit_and_no_report_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no edit's file and no folder of a checkpoint or an adapter"):
        described(tmp_path)
    good = json.loads((made / "out-report/report.json").read_text())
    broken = [{}, [], good | {"facts": [{"prompt": 1}]}, good | {"before": {"known": {}, "eff": "many"}}]
    for text in ["", "{", *map(json.dumps, broken)]:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ConfigError, match="is no report of a run"):
            read_report(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match="is damaged"):
        described(tmp_path)


class Hub:
    """The calls that would go to the hub, which there is none of here; with arguments that the real ones take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, private: bool = True, error: Exception | None = None):
        self.calls: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(HfApi, "create_repo", self._take("create_repo", error=error))
        monkeypatch.setattr(HfApi, "repo_info", self._take("repo_info", type("Info", (), {"private": private})))
        monkeypatch.setattr(HfApi, "upload_folder", self._take("upload_folder", "https://hub/commit/1"))

    def _take(self, name: str, answer: Any = None, error: Exception | None = None) -> Any:
        signature = inspect.signature(getattr(HfApi, name))

        def call(api: HfApi, repo_id: str, **given: Any) -> Any:
            signature.bind(api, repo_id=repo_id, **given)
            self.calls.append((name, {"repo_id": repo_id, **given}))
            if error is not None:
                raise error
            return answer

        return call


@pytest.mark.parametrize("source", ["out", "adapter"])
def test_a_checkpoint_and_an_adapter_are_uploaded(source: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    result = CliRunner().invoke(main, ["push", str(made / source), "me/forgotten", "--private"])
    assert result.exit_code == 0, result.output
    assert "https://hub/commit/1" in result.output
    assert [name for name, _ in hub.calls] == ["create_repo", "repo_info", "upload_folder"]
    assert hub.calls[0][1] == {"repo_id": "me/forgotten", "private": True, "exist_ok": True}
    sent = hub.calls[2][1]
    assert (sent["repo_id"], sent["folder_path"]) == ("me/forgotten", str(made / source))
    held = b"".join(file.read_bytes() for file in (made / source).iterdir() if file.name != "tokenizer.json")
    assert not [word for word in SECRETS if word.encode() in held]


@pytest.mark.parametrize(
    "name",
    [
        "report.json",
        "report.md",
        "facts.jsonl",
        "edit.safetensors",
        "sub/config.json",
        "model.bin",
        ".env",
        "notes.txt",
    ],
)
def test_a_folder_that_holds_anything_else_is_refused(
    name: str, small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    tiny("llama", len(small_tokenizer), dtype=torch.float32).save_pretrained(tmp_path)
    check_publishable(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=rf"holds '{name}', which is no part of a checkpoint or an adapter"):
        push(tmp_path, "me/forgotten")
    assert not hub.calls


def test_a_report_as_the_readme_and_a_folder_without_weights_are_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no weights in safetensors"):
        check_publishable(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_publishable(tmp_path)
    (tmp_path / "README.md").write_bytes((made / "out-report/report.md").read_bytes())
    with pytest.raises(ConfigError, match="is a run's report, with the facts in clear"):
        check_publishable(tmp_path)
    with pytest.raises(ConfigError, match="is no folder of a checkpoint or an adapter"):
        check_publishable(tmp_path / "nothing")


def test_what_the_hub_refuses_is_one_sentence(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, error=ConnectionError("no route to the hub"))
    with pytest.raises(
        OutputError, match=r"cannot be uploaded to 'me/x': ConnectionError: no route to the hub; log in"
    ):
        push(made / "out", "me/x")
    Hub(monkeypatch, error=HFValidationError("no such name"))
    with pytest.raises(ConfigError, match="repo='me/x/y': expected OWNER/NAME"):
        push(made / "out", "me/x/y")
    hub = Hub(monkeypatch, private=False)
    with pytest.raises(ConfigError, match="is there already and is public"):
        push(made / "out", "me/x", private=True)
    assert [name for name, _ in hub.calls] == ["create_repo", "repo_info"]
