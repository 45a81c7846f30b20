"""The guide's examples run, a package of somebody else's adds its own, and the wheel works far from the clone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import tiny

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)

PLUGIN = '''
from statistics import fmean
from torch import Tensor
import zerounlearn as zu
from zerounlearn.config import Number, option, settings
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import load_facts
from zerounlearn.evaluation.registry import Goal, metric
from zerounlearn.method.gradient.base import ForgetSet, GradientMethod, Term


@settings
class Softly(GradientMethod):
    """Ascent, softly."""

    alg_name: str = option("Softly", "The method's name.")
    share: Number = option(0.5, "Of the ascent.", gt=0)

    def forget_term(self, forget: ForgetSet) -> Term:
        def loss(batch: list[int]) -> Tensor:
            return self.share * forget.log_p(batch).mean()

        return Term(len(forget.answers), loss)


def facts(count: int = 6) -> list[Entry]:
    subjects = ["France", "Germany", "Rio", "Lisbon", "Paris", "Berlin", "Leo", "War"][:count]
    records = [{"prompt": "The capital of {} is", "subject": s, "answer": "Paris"} for s in subjects]
    return [Entry(facts=(fact,), topic="capital") for fact in load_facts(records)]


def register() -> None:
    zu.methods.register("Softly", source="elsewhere")(Softly)
    zu.datasets.add("made up", facts, summary="Facts of a plugin")
    metric("plugin_length", label="Length", goal=Goal.NONE, meaning="Tokens of an answer.")(
        lambda asked: fmean(len(tokens.ids) for tokens in asked.answers(asked.probes.eff))
    )
'''


@pytest.mark.parametrize("example", EXAMPLES, ids=re.findall(r"^## (.*)$", GUIDE, re.MULTILINE)[: len(EXAMPLES)])
def test_the_guides_examples_run(example: str) -> None:
    assert "assert" in example
    subprocess.run([sys.executable, "-c", example], check=True, cwd=ROOT)


def test_the_guides_methods_forget(small_tokenizer: Any, tmp_path: Path) -> None:
    """Not only registered: applied, measured, reverted."""
    use = (
        "\nfrom tests.helpers import FACTS, tiny\nfrom tests.conftest import small_bpe\n"
        "from zerounlearn.data.fact import Fact\nfrom zerounlearn.model.answers import score\n"
        "tok = small_bpe()\nmodel = tiny('llama', len(tok), dtype=torch.float32)\n"
        "items = [f.query for f in FACTS]\nbefore = [s.probability for s in score(model, tok, items)]\n"
        "edit = zu.unlearn(model, tok, [Fact(f) for f in FACTS], zu.methods[NAME](layers=[1, 2], **OPTIONS))\n"
        "after = [s.probability for s in score(model, tok, items)]\nassert before != after\n"
        "if NAME == 'Bounded ascent':\n    assert sum(after) < sum(before)\n"
        "edit.revert(model)\nassert before == [s.probability for s in score(model, tok, items)]\n"
    )
    for name, options, example in (
        ("Bounded ascent", "dict(retain_weight=0, steps=5, lr=1e-2)", EXAMPLES[0]),
        ("Shrink", "{}", EXAMPLES[1]),
    ):
        code = f"import torch\n{example}{use}".replace("NAME", repr(name)).replace("OPTIONS", options)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_package_of_somebody_elses_adds_its_own(small_tokenizer: Any, tmp_path: Path) -> None:
    """Installed by pip; its method, metric and data set then stand in a study, with no change here."""
    source = tmp_path / "plugin"
    source.mkdir()
    (source / "tiny_plugin.py").write_text(PLUGIN)
    (source / "setup.cfg").write_text(
        "[metadata]\nname = tiny-plugin\nversion = 0.1\n[options]\npy_modules = tiny_plugin\n"
        "[options.entry_points]\nzerounlearn.plugins =\n    tiny = tiny_plugin:register\n"
    )
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    there = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(there), str(source)], check=True)
    folder = tmp_path / "model"
    tiny("llama", len(small_tokenizer), dtype=torch.float32).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    (tmp_path / "softly.yaml").write_text("alg_name: Softly\nmodel_name: x\nlayers: [1]\nsteps: 2\n")
    study = {
        "model": {"name": str(folder), "device": "cpu"},
        "output": str(tmp_path / "out"),
        "datasets": {"theirs": {"name": "made up", "options": {"count": 8}}},
        "methods": {"Softly": {"hparams": str(tmp_path / "softly.yaml")}},
        "sizes": [2],
        "metrics": ["plugin_length"],
        "held_out": {"text": None},
        "retain_size": 1,
        "unrelated_size": 0,
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    path = os.pathsep.join([str(there), str(ROOT / "plugin"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "zerounlearn", "study", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (cell,) = (tmp_path / "out/cells").glob("*.json")
    record = json.loads(cell.read_text())
    assert record["after"]["plugin_length"] > 0
    assert record["cell"]["algorithm"] == "Softly"
    listed = subprocess.run(
        [sys.executable, "-m", "zerounlearn", "list", "methods"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Softly" in listed.stdout


def test_the_wheel_does_the_main_job_away_from_the_clone(small_tokenizer: Any, tmp_path: Path) -> None:
    """Built from a copy of the sources, installed into an empty environment that knows no EasyEdit."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    subprocess.run([*pip, str(tmp_path), str(copy)], check=True)
    (wheel,) = tmp_path.glob("zerounlearn-*.whl")
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, system_site_packages=False)
    packages = next(place.glob("lib/python*/site-packages"))
    target = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
    subprocess.run([*target, str(wheel)], check=True)
    # The dependencies of the test's own environment, but for what is found there of zerounlearn and EasyEdit.
    here = next(p for p in sys.path if p.endswith("site-packages"))
    links = packages.parent / "dependencies"
    links.mkdir()
    for entry in Path(here).iterdir():
        if not re.search(r"zerounlearn|easyeditor", entry.name):
            (links / entry.name).symlink_to(entry)
    (packages / "dependencies.pth").write_text(f"{links}\n")

    folder = tmp_path / "model"
    tiny("llama", len(small_tokenizer), dtype=torch.float32).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps({"prompt": "The capital of {} is", "subject": "France", "answer": "Paris"}) + "\n")
    text = tmp_path / "text.txt"
    text.write_text("The weather today was fine.\n" * 5)
    python = place / "bin/python"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EASYEDIT_HOME")}

    def run(*arguments: str) -> str:
        command = [str(python), "-m", "zerounlearn", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [str(python), "-c", "import zerounlearn; print(zerounlearn.__file__)"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(place) in where.stdout
    changes = [f"model_name={folder}", "layers=[1,2]", "v_loss_layer=3", "v_num_grad_steps=3", f"mom2_dataset={text}"]
    changes += ["mom2_n_samples=3", f"stats_dir={tmp_path / 'stats'}", "device=cpu"]
    run("unlearn", "ZeroUnlearn/smollm2-135m", "--forget", str(facts), "--output", "out", *changes)
    assert (tmp_path / "out/model.safetensors").is_file()
    assert "NPO/smollm2-135m" in run("hparams", "list")
    assert "quick" in run("list", "studies")
