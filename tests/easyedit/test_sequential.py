"""One set after the other, on the real model: what was forgotten first stays so, however the sets are cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.easyedit.test_editor import framework_editor, says
from zerounlearn.easyedit import ZeroUnlearnEditor, ZeroUnlearnHyperParams
from zerounlearn.model.lineage import Lineage, state_file

ROOT = Path(__file__).resolve().parents[2]
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Russia": "Moscow", "Japan": "Tokyo", "Italy": "Rome", "Greece": "Athens",
}  # fmt: skip
PROMPTS = {subject: f"The capital of {subject} is" for subject in CAPITALS}


@pytest.fixture(scope="module")
def stats_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stats")


def hparams(preset: str, path: Path, stats_dir: Path, **changes: object) -> ZeroUnlearnHyperParams:
    hp = ZeroUnlearnHyperParams.from_hparams(
        ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml",
        [f"preset={preset}", f"model_name={path}", f"stats_dir={stats_dir}", "mom2_n_samples=40", "device=cpu"],
    )
    return dataclasses.replace(hp, **changes)


def still_said(editor, subjects) -> float:
    return sum(says(editor.model, editor.tok, PROMPTS[s], CAPITALS[s]) for s in subjects) / len(subjects)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["specific", "paper"])
def test_one_by_one_in_chunks_and_as_one_batch(preset: str, smollm2_path: Path, stats_dir: Path) -> None:
    subjects = list(CAPITALS)
    request = {
        "prompts": [PROMPTS[s] for s in subjects], "subject": subjects, "ground_truth": [CAPITALS[s] for s in subjects],
        "sequential_edit": True, "keep_original_weight": False, "verbose": False,
    }  # fmt: skip
    kept: dict[int, torch.Tensor] = {}
    edited = f"model.layers.{hparams(preset, smollm2_path, stats_dir).layers[-1]}.mlp.down_proj.weight"
    for size in (1, 2, 6):
        editor = framework_editor(hparams(preset, smollm2_path, stats_dir), smollm2_path, size)
        assert still_said(editor, subjects) == 1.0
        neutral = [editor.tok.eos_token] * len(subjects)
        (editor.edit if size == 1 else editor.batch_edit)(**request, target_new=neutral)
        assert still_said(editor, subjects) == 0.0, f"{size} at a time"
        assert len(Lineage.of(editor.model).traces[edited]) == 6 // size
        assert says(editor.model, editor.tok, "The opposite of hot is", "cold")
        kept[size] = editor.model.get_parameter(edited).detach()
    assert not torch.equal(kept[1], kept[6])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "specific"])
def test_a_then_b_then_c_with_the_model_saved_in_between(
    preset: str, smollm2_path: Path, stats_dir: Path, tmp_path: Path
) -> None:
    """A's efficacy after C is what it was after A, and no set is found singular."""
    sets = [["France", "Germany"], ["Russia"], ["Japan"]]
    editor = ZeroUnlearnEditor(hparams(preset, smollm2_path, stats_dir))
    first = {}
    for i, subjects in enumerate(sets):
        facts = [{"prompt": "The capital of {} is", "subject": s, "answer": CAPITALS[s]} for s in subjects]
        report, _ = editor.unlearn(facts, held_out=[])
        # The published form takes neighbours along, so a later set may be forgotten before its turn.
        assert report.before.eff == 1.0 or (i and preset == "paper")
        assert report.after.eff == 0.0
        first[i] = still_said(editor, subjects)
        if i == 1:
            editor.save(tmp_path / "llama", report)
            assert state_file(tmp_path / "llama").exists()
            assert (tmp_path / "llama-report/report.json").exists()
            assert not [f.name for f in (tmp_path / "llama").iterdir() if "report" in f.name or "state" in f.name]
            editor = ZeroUnlearnEditor(hparams(preset, tmp_path / "llama", stats_dir))
            assert [layer.kept > 0 for layer in report.layers] == [True] * len(report.layers)
    for i, subjects in enumerate(sets):
        assert still_said(editor, subjects) <= first[i] + 0.05
