"""The snippets of the README and the guides: found, and run in a folder that has what a clone has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def snippets(page: str) -> list[tuple[str, str]]:
    """Kind (python, bash) and text of each, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(python|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def like_a_clone(folder: Path, smollm2_path: Path) -> None:
    """Link what snippets name; statistics that are cached in the clone need not be taken again."""
    (folder / "models").symlink_to(smollm2_path.parent)
    for name in ("data", "hparams", "studies", "examples"):
        (ROOT / name).mkdir(exist_ok=True)  # a fresh clone has no data yet
        (folder / name).symlink_to(ROOT / name)


def run(kind: str, text: str, folder: Path) -> str:
    """What a snippet prints, run in `folder` with this interpreter's programs; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, (text, done.stderr[-3000:])
    return done.stdout
