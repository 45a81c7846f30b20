"""Run studies, and put what they wrote where the documentation shows it.

    python benchmarks/publish.py quality [quick fronts] [--engine ray --workers 2]

A study's tables.md becomes benchmarks/results/NAME.md, its first tables stand between the marks of docs/results.md
and docs/audit.md, and the plot of paraphrases against other facts about the subject becomes
benchmarks/results/NAME.svg. Nothing in them is written by hand; a test compares the pages with the files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pages import between

from zerounlearn.evaluation.registry import Group
from zerounlearn.files import write_text
from zerounlearn.study.spec import load_study

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = (ROOT / "docs/results.md", ROOT / "docs/audit.md")
PLOT = "pareto-gen-spe_subject.svg"


def tables(name: str) -> str:
    """The study's main tables, those relative to the base model and those of attacks, without what follows them."""
    sections = re.split(r"^(?=## )", (RESULTS / f"{name}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    heads = tuple(f"## {group.value}" for group in (Group.CORE, Group.RELATIVE, Group.ATTACKS))
    shown = [s for s in sections if s.startswith(heads)]
    return "".join(section.replace("## ", "### ", 1) for section in shown).strip()


def marked(page: str) -> list[str]:
    """The studies that the page has a place for."""
    return re.findall(r"<!-- study (\S+) -->", page)


def filled(page: str) -> str:
    """The page with each study's tables between its marks."""
    for name in marked(page):
        page = between(page, f"<!-- study {name} -->", f"<!-- end of study {name} -->", tables(name))
    return page


def publish(name: str) -> None:
    """Take up what a study wrote."""
    folder = ROOT / load_study(ROOT / f"studies/{name}.yaml").output
    write_text(RESULTS / f"{name}.md", (folder / "tables.md").read_text(encoding="utf-8"))
    plot = sorted(folder.glob(f"plots/*-{PLOT}"))[0]
    write_text(RESULTS / f"{name}.svg", plot.read_text(encoding="utf-8"))


def main() -> None:
    """Run the studies named, with the options given, and publish each."""
    names = [argument for argument in sys.argv[1:] if (ROOT / f"studies/{argument}.yaml").is_file()]
    options = [argument for argument in sys.argv[1:] if argument not in names]
    if not names:
        raise SystemExit(__doc__)
    for name in names:
        command = [sys.executable, "-m", "zerounlearn", "study", f"studies/{name}.yaml", *options]
        done = subprocess.run(command, cwd=ROOT)
        if done.returncode not in (0, 1):  # 1: a cell failed, which the tables say
            raise SystemExit(done.returncode)
        publish(name)
    for page in PAGES:
        write_text(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
