"""The guide to the audit: its snippets run on the real model, and it names every attack and grade."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guides import like_a_clone, run, snippets
from zerounlearn.audit.certificate import _GRADES
from zerounlearn.audit.registry import attacks

GUIDE = (Path(__file__).resolve().parents[2] / "docs/audit.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text"), snippets("docs/audit.md"), ids=["command line", "library"])
def test_it_runs(kind: str, text: str, tmp_path: Path, smollm2_path: Path) -> None:
    like_a_clone(tmp_path, smollm2_path)
    printed = run(kind, text, tmp_path)
    if kind == "bash":
        assert "the certificate is of this audit, the edited model, these facts" in printed
        assert (tmp_path / "outputs/audit/audit.html").is_file()


def test_it_tells_of_every_attack_and_grade() -> None:
    heads = [line.removeprefix("### ").casefold() for line in GUIDE.splitlines() if line.startswith("### ")]
    for name, one in attacks.items():
        if name != "plain":  # what every audit starts with
            words = {name.replace("_", " "), name.split("_")[0], one.label.casefold().split(" with")[0]}
            assert any(word in head for word in words for head in heads) or name == "honesty", name
    assert "### Second turn" in GUIDE
    for grade in {*_GRADES.values(), "A"}:
        assert len([line for line in GUIDE.splitlines() if line.startswith(f"| {grade} |")]) == 1
