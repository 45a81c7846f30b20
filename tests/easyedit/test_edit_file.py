"""Edits as files through the editor, on the real model: what the framework keeps, what it puts back, what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.easyedit.test_editor import FACTS, changed, weights
from zerounlearn.easyedit import ZeroUnlearnEditor, ZeroUnlearnHyperParams
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import EditError

ROOT = Path(__file__).resolve().parents[2]
STAYS = {
    ("wheel", "nothing"): True,
    ("wheel", "sequential_edit"): True,
    ("wheel", "keep_original_weight"): False,
    ("checkout", "nothing"): False,
    ("checkout", "sequential_edit"): True,
    ("checkout", "keep_original_weight"): False,
}
"""Whether an edit stays, by the edition and the switch that is on: the table of docs/edits.md."""


@pytest.fixture(scope="module")
def loaded(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ZeroUnlearnEditor:
    hparams = ZeroUnlearnHyperParams.from_hparams(
        ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml",
        [f"model_name={smollm2_path}", "device=cpu", "mom2_adjustment=false", "v_num_grad_steps=3", "batch_size=2"],
    )
    return ZeroUnlearnEditor(hparams)


@pytest.fixture
def editor(loaded: ZeroUnlearnEditor) -> Any:
    """The editor with its model as it came."""
    before = weights(loaded.model)
    yield loaded
    with torch.no_grad():
        for name, value in before.items():
            loaded.model.get_parameter(name).copy_(value)
    loaded.edits.clear()


def of_one(editor: ZeroUnlearnEditor, **switches: bool) -> None:
    request = {"prompts": ["The capital of France is"], "subject": ["France"], "ground_truth": ["Paris"]}
    editor.batch_edit(**request, target_new=[editor.tok.eos_token], verbose=False, **switches)


@pytest.mark.parametrize("switch", ["nothing", "sequential_edit", "keep_original_weight"])
def test_what_stays_and_what_is_put_back(switch: str, editor: ZeroUnlearnEditor, tmp_path: Path) -> None:
    before = weights(editor.model)
    of_one(editor, **({} if switch == "nothing" else {switch: True}))
    stays = STAYS[framework().edition, switch]
    assert changed(editor.model, before) == (set(editor.hparams.layers) if stays else set())
    edited = weights(editor.model)
    assert editor.edit_file(tmp_path / "edit", originals=True) is editor.edits[-1]
    if stays:
        assert editor.revert() is editor.edits[-1]
        assert not changed(editor.model, before)
    with pytest.raises(EditError, match="no edit of this editor is on the model"):
        editor.revert()
    editor.apply_edit(tmp_path / "edit")
    assert changed(editor.model, before) == set(editor.hparams.layers)
    assert not stays or not changed(editor.model, edited)
    zu.Edit.load(tmp_path / "edit").revert(editor.model)
    assert not changed(editor.model, before)


def test_one_request_after_the_other_and_back(editor: ZeroUnlearnEditor, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="nothing was edited yet"):
        editor.edit_file(tmp_path / "edit")
    states = [weights(editor.model)]
    of_one(editor, sequential_edit=True)
    states.append(weights(editor.model))
    editor.unlearn(FACTS[1:2], held_out=[])
    first, second = editor.edits
    assert second.facts and first.facts != second.facts
    editor.edit_file(tmp_path / "second")
    with pytest.raises(EditError, match="take back later edits first"):
        first.revert(editor.model)
    for edit in (second, first):
        assert editor.revert() is edit
        assert not changed(editor.model, states.pop())
    with pytest.raises(EditError, match="is not the weight that this edit was made on"):
        editor.apply_edit(tmp_path / "second")
    assert editor.edits == [first, second]


@pytest.mark.easyedit_checkout
def test_in_the_checkout_too() -> None:
    if not os.environ.get("EASYEDIT_HOME"):
        pytest.skip("EASYEDIT_HOME names no checkout of EasyEdit")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "4 passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]
