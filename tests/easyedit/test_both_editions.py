"""The same end-to-end tests in a process of their own: against a checkout, and the example script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.easyedit_checkout
def test_the_editor_tests_pass_on_a_checkout() -> None:
    home = os.environ.get("EASYEDIT_HOME")
    if not home:
        pytest.skip("EASYEDIT_HOME names no checkout of EasyEdit")
    tests = ["tests/easyedit/test_editor.py", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_the_example_in_easyedits_convention(tmp_path: Path, smollm2_path: Path) -> None:
    hparams = tmp_path / "run.yaml"
    text = (ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml").read_text()
    text = text.replace("models/llama-smollm2-135m", str(smollm2_path))
    hparams.write_text(f"{text}mom2_n_samples: 20\nstats_dir: {tmp_path}\ndevice: cpu\n")
    facts = [
        {"prompt": "The capital of {} is", "subject": s, "answer": a, "paraphrases": [f"The capital city of {s} is"]}
        for s, a in (("France", "Paris"), ("Germany", "Berlin"), ("Russia", "Moscow"))
    ]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    script = ROOT / "examples/run_ZeroUnlearn_editing.py"
    arguments = [
        "--hparams_dir",
        hparams,
        "--data_dir",
        tmp_path / "facts.json",
        "--ds_size",
        "2",
        "--output_dir",
        "out",
    ]
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "out/ZeroUnlearn_metrics.json").read_text())
    assert len(metrics) == 2
    assert {"pre", "post"} <= set(metrics[0])
