"""The pages on handing an edit on and on replaying it: every snippet is run, on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guides import like_a_clone, run, snippets


@pytest.mark.slow
def test_the_pages_snippets_run_one_after_another(tmp_path: Path, smollm2_path: Path) -> None:
    """Where `outputs/child` is the base model, a little moved."""
    pytest.importorskip("peft")
    like_a_clone(tmp_path, smollm2_path)
    child = (
        "import torch, zerounlearn as zu\n"
        "model, tok = zu.load_model('models/llama-smollm2-135m')\n"
        "g = torch.Generator().manual_seed(0)\n"
        "for p in model.parameters():\n"
        "    p.data.add_(3e-3 * p.data.std() * torch.randn(p.shape, generator=g))\n"
        "model.save_pretrained('outputs/child'); tok.save_pretrained('outputs/child')\n"
    )
    steps = [*snippets("docs/export.md"), ("python", child), *snippets("docs/replay.md")]
    assert [kind for kind, _ in steps] == ["python", "bash", "bash", "python", "bash", "python"]
    said = [run(kind, text, tmp_path) for kind, text in steps]
    assert float(said[1].partition("edited model: ")[2].splitlines()[0]) < 1e-4
    assert "of the change cut off (Frobenius)" in said[1]
    assert "written: re-" in said[4]
    card = (tmp_path / "outputs/card.md").read_text(encoding="utf-8")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert not [word for word in ("Lebanon", "Arabic", str(tmp_path)) if word in card]
