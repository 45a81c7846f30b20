"""The pages on handing an edit on and on replaying it: every snippet is run, on the real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def snippets(page: str) -> list[tuple[str, str]]:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```(python|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_pages_snippets_run_one_after_another(tmp_path: Path, smollm2_path: Path) -> None:
    """Where `outputs/child` is the base model, a little moved."""
    pytest.importorskip("peft")
    (tmp_path / "models").symlink_to(smollm2_path.parent)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "data/stats").mkdir(parents=True)
    cached = ROOT / "data/stats"
    for folder in cached.iterdir() if cached.is_dir() else ():
        (tmp_path / "data/stats" / folder.name).symlink_to(folder)
    child = (
        "import torch, zerounlearn as zu\n"
        "model, tok = zu.load_model('models/llama-smollm2-135m')\n"
        "g = torch.Generator().manual_seed(0)\n"
        "for p in model.parameters():\n"
        "    p.data.add_(3e-3 * p.data.std() * torch.randn(p.shape, generator=g))\n"
        "model.save_pretrained('outputs/child'); tok.save_pretrained('outputs/child')\n"
    )
    steps = [*snippets("export"), ("python", child), *snippets("replay")]
    assert [kind for kind, _ in steps] == ["python", "bash", "bash", "python", "bash", "python"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for kind, text in steps:
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, (text, done.stderr[-3000:])
        said.append(done.stdout)
    assert float(said[1].partition("edited model: ")[2].splitlines()[0]) < 1e-4
    assert "of the change cut off (Frobenius)" in said[1]
    assert "written: re-" in said[4]
    card = (tmp_path / "outputs/card.md").read_text(encoding="utf-8")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert not [word for word in ("Lebanon", "Arabic", str(tmp_path)) if word in card]
