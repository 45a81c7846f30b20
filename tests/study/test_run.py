"""Running a study: the records, what is shared, what is run again, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from tests.offline_task import TASK, write_task
from tests.study.small_study import GRADIENT, checkpoint, comparable, write_study
from zerounlearn.cli import main
from zerounlearn.errors import ConfigError, LayoutError
from zerounlearn.method.edit import Edit
from zerounlearn.model.fingerprint import weights_hash
from zerounlearn.study import run as study_run
from zerounlearn.study import worker as bench
from zerounlearn.study.cells import CellJob
from zerounlearn.study.engines import LocalEngine
from zerounlearn.study.measures import Measures
from zerounlearn.study.run import Plan, Summary, run_study
from zerounlearn.study.spec import load_study

ROOT = Path(__file__).resolve().parents[2]
GA = {"hparams": str(ROOT / "hparams/GA/smollm2-135m.yaml"), "set": GRADIENT}


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer) -> Path:
    return checkpoint(tmp_path_factory.mktemp("study") / "llama-tiny", small_tokenizer)


@pytest.fixture(autouse=True)
def no_outputs(monkeypatch, request) -> None:
    """Tables and plots take longer than these cells; one test has them written."""
    if "outputs" not in request.fixturenames:
        monkeypatch.setattr(study_run, "_outputs", lambda *_: None)


@pytest.fixture
def outputs() -> None:
    """Asked for by a test that wants them."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model: Path) -> tuple[Path, Summary]:
    path = write_study(tmp_path_factory.mktemp("finished"), model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_run, "_outputs", lambda *_: None)
        return path, run(path)


def run(path: Path, *overrides: str, on_cell: Callable[[dict[str, Any]], None] | None = None) -> Summary:
    study = load_study(path, overrides)
    return run_study(study, LocalEngine(study), on_cell=on_cell)


def by_method(summary: Summary) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in summary.records:
        found.setdefault(record["cell"]["method"], []).append(record)
    return found


def test_the_records(finished: tuple[Path, Summary], model: Path) -> None:
    path, summary = finished
    assert summary.run == len(summary.records) == 6
    assert not summary.failed
    weights = weights_hash(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    for record in summary.records:
        stored = json.loads((path.parent / "out/cells" / f"{record['id']}.json").read_text())
        assert stored.pop("checksum")
        assert stored == record
        assert (record["weights"], record["restored"]) == (weights, True)
        assert (record["cell"]["dataset"], record["cell"]["n"], len(record["facts"])) == ("facts", 3, 3)
        assert set(record["before"]) == set(record["after"]) > {"eff", "gen", "spe", "spe_relation", "ppl"}
        assert record["after"]["eff_probability"] == pytest.approx(
            sum(fact["after"]["probability"] for fact in record["facts"]) / 3, rel=1e-6
        )
        assert date.fromisoformat(record["date"]) >= date(2026, 1, 1)
        for fact in record["facts"]:
            for phase in ("before", "after"):
                assert fact[phase]["completion"]
                one, other = fact[phase]["paraphrases"]
                assert other["prompt"] == "It is so. The city is" != one["prompt"]
                assert 0 <= one["probability"] <= 1 and isinstance(one["said"], bool)
        reworded = [p["probability"] for fact in record["facts"] for p in fact["after"]["paraphrases"]]
        assert record["after"]["gen_probability"] == pytest.approx(sum(reworded) / len(reworded), rel=1e-6)
        assert record["seconds"]["unlearn"] > 0 < record["seconds"]["evaluate"]
        assert record["peak_bytes"] > 10 * 2**20
        assert record["environment"]["dtype"] == "float32"
    rows = by_method(summary)
    assert rows["GA"][0]["hparams"]["lr"] == GRADIENT["lr"]
    assert rows["GA"][0]["facts"] != rows["GA"][1]["facts"], "another seed, another forget set"
    for one, other in zip(rows["GA"], rows["ZeroUnlearn"], strict=True):
        assert one["before"] == other["before"]
        assert one["after"] != other["after"]
        assert one["after"]["eff_probability"] < one["before"]["eff_probability"], "gradient ascent forgets"


@pytest.mark.usefixtures("outputs")
def test_the_tables_are_written_at_the_end(tmp_path: Path, model: Path, monkeypatch) -> None:
    swept = {**GA, "grid": {"weight_decay": [0, 0.1]}}
    path = write_study(
        tmp_path, model, methods={"GA": GA, "GA'": swept}, reference_method="GA", held_out={"text": None}
    )
    summary = run(path)
    assert summary.outputs is None
    tables = (tmp_path / "out/tables.md").read_text()
    assert "Swept methods where GA stands" in tables and "GA' (swept)" in tables
    tests = pd.read_csv(tmp_path / "out/significance.csv")
    assert set(tests["reference"]) == {"GA"}
    table = (tmp_path / "out/results.csv").read_bytes()
    (tmp_path / "out/results.csv").unlink()
    assert run(path).run == 0
    assert (tmp_path / "out/results.csv").read_bytes() == table
    monkeypatch.setitem(sys.modules, "zerounlearn.report.outputs", None)  # as where the extra is missing
    without = run(path, "seeds=[2]")
    assert (without.run, without.failed) == (3, [])
    assert "pip install 'zerounlearn[study]'" in str(without.outputs)


def test_plots_show_the_first_zerounlearn_in_colour_or_the_named_one(tmp_path: Path, model: Path) -> None:
    swept = {"hparams": str(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml"), "grid": {"strength": [0.5, 1.0]}}
    path = write_study(tmp_path, model, methods={"GA": GA, "Ours": swept})
    algorithms = [("GA", "GA"), ("Ours strength=0.5", "ZeroUnlearn"), ("Ours strength=1.0", "ZeroUnlearn")]
    records = [{"cell": {"method": label, "algorithm": name}} for label, name in algorithms]
    assert study_run._highlight(load_study(path), records) == "Ours", "the sweep, not one of its settings"
    assert study_run._highlight(load_study(path), records[:1]) is None
    assert study_run._highlight(load_study(path, ["highlight=GA"]), records) == "GA"


def test_standard_tasks_are_run_before_and_after(tmp_path: Path, model: Path) -> None:
    tasks = {"tasks": [TASK], "folder": str(write_task(tmp_path)), "limit": 4}
    (record,) = run(write_study(tmp_path, model, methods={"GA": GA}, seeds=[0], lm_eval=tasks)).records
    for phase in ("before", "after"):
        assert record[phase][f"lm_eval/{TASK}/acc"] * 4 in range(5)
    assert record["restored"]


def test_the_base_model_is_measured_once_a_draw(tmp_path: Path, model: Path, monkeypatch) -> None:
    taken: Counter[int] = Counter()
    take = Measures.take

    def counted(self, asked):
        taken[len(asked.facts)] += 1
        return take(self, asked)

    monkeypatch.setattr(Measures, "take", counted)
    methods = {"one": GA, "other": {**GA, "set": {**GRADIENT, "steps": 1}}}
    path = write_study(tmp_path, model, methods=methods, sizes=[1, 2], held_out={"text": None})
    run(path)
    assert taken == {1: 2 * (1 + 2), 2: 2 * (1 + 2)}, "for each of two seeds the base and two methods"
    assert len(list((tmp_path / "out/bases").iterdir())) == 4


def test_statistics_are_taken_once_and_charged_to_no_cell(finished: tuple[Path, Summary]) -> None:
    path, _ = finished
    files = {file.stat().st_ino for file in (path.parent / "stats").rglob("*.npz")}  # under a name of either edition
    assert len(files) == 2, "one a layer, for both seeds"


def test_nothing_finished_is_run_again(finished: tuple[Path, Summary], monkeypatch) -> None:
    path, first = finished
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    again = run(path)
    assert again.run == 0
    assert again.records == first.records
    result = CliRunner().invoke(main, ["study", str(path), "--dry-run"])
    assert "6 cells, 6 of them done" in result.output


def test_only_what_has_changed_is_run_again(tmp_path: Path, small_tokenizer) -> None:
    folder = checkpoint(tmp_path / "llama-tiny", small_tokenizer)
    methods = {"one": GA, "other": {**GA, "set": {**GRADIENT, "steps": 1}}}
    path = write_study(tmp_path, folder, methods=methods, seeds=[0])
    first = run(path)
    changed = write_study(
        tmp_path, folder, methods={**methods, "one": {**GA, "set": {**GRADIENT, "lr": 2e-2}}}, seeds=[0]
    )
    second = run(changed)
    assert second.run == 1
    assert second.records[1] == first.records[1]
    assert second.records[0]["after"] != first.records[0]["after"]
    assert run(write_study(tmp_path, folder, methods=methods, seeds=[0])).run == 0, (
        "back again: its cell is still there"
    )

    (tmp_path / "out/cells" / f"{first.records[1]['id']}.json").write_text('{"id": "torn')
    torn = run(path)
    assert (torn.run, comparable(torn.records[1])) == (1, comparable(first.records[1]))

    assert run(path, "metrics=[exact_memorisation]").run == 2, "another metric"
    assert run(path, "retain_size=3").run == 2, "another draw"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[3, 5] += 1e-3
    model.save_pretrained(folder)
    other = run(path)
    assert other.run == 2, "another checkpoint, by a single weight"
    assert other.records[0]["weights"] != first.records[0]["weights"]
    assert other.records[0]["before"] != first.records[0]["before"]


def test_a_failing_cell_is_reported_and_the_rest_goes_on(tmp_path: Path, model: Path) -> None:
    broken = {**GA, "set": {**GRADIENT, "lr": 2e37}}
    path = write_study(tmp_path, model, methods={"broken": broken, "GA": GA}, seeds=[0], held_out={"text": None})
    result = CliRunner().invoke(main, ["study", str(path)])
    assert result.exit_code == 1, result.output
    assert "1 of 2 cells failed" in result.output
    assert "lower lr=2e+37" in result.output
    records = [json.loads(file.read_text()) for file in sorted((tmp_path / "out/cells").iterdir())]
    assert [(r["cell"]["method"], r["status"], r["restored"]) for r in records] == [
        ("GA", "done", True), ("broken", "failed", True),
    ]  # fmt: skip
    assert records[1]["error"].startswith("IllPosedError: GA: ")
    assert records[1]["before"] == records[0]["before"]
    assert records[1]["after"] == {}
    assert run(path).run == 1, "what failed is tried again"
    alone = run(
        write_study(
            tmp_path, model, methods={"GA": GA}, seeds=[0], output=str(tmp_path / "alone"), held_out={"text": None}
        )
    )
    assert alone.records[0]["after"] == records[0]["after"], "nothing of the failure is left"


def test_a_failure_after_the_edit_leaves_the_weights_as_they_were(tmp_path: Path, model: Path, monkeypatch) -> None:
    path = write_study(tmp_path, model, methods={"A": GA, "B": GA}, seeds=[0], held_out={"text": None})
    take, calls = Measures.take, []

    def fails_once(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return take(self, *args)

    monkeypatch.setattr(Measures, "take", fails_once)
    first, second = run(path).records
    assert (first["status"], first["error"], first["restored"]) == ("failed", "RuntimeError: out of memory", True)
    assert second["status"] == "done"
    monkeypatch.setattr(Measures, "take", take)
    assert comparable(run(path).records[1]) == comparable(second)
    assert run(path).records[0]["after"] == second["after"]


def test_a_method_that_cannot_be_undone_is_found_out(tmp_path: Path, model: Path, monkeypatch) -> None:
    """The hash tells, and the next cell starts from the checkpoint all the same."""
    path = write_study(tmp_path, model, methods={"A": GA, "B": GA}, seeds=[0], held_out={"text": None})
    clean = run(path, f"output={tmp_path / 'clean'}").records
    monkeypatch.setattr(Edit, "revert", lambda *_: None)
    records = run(path).records
    assert [r["restored"] for r in records] == [False, False]
    assert [r["after"] for r in records] == [r["after"] for r in clean]
    assert [r["weights"] for r in records] == [r["weights"] for r in clean]


def test_the_frameworks_own_methods_stand_beside_ours(tmp_path: Path, model: Path) -> None:
    fine_tuned = {
        "hparams": str(ROOT / "hparams/FT/smollm2-135m.yaml"),
        "set": {"layers": [1], "num_steps": 2, "lm_head_module": "lm_head", "lr": 1e-3},
    }
    path = write_study(tmp_path, model, methods={"FT": fine_tuned, "GA": GA}, seeds=[0], held_out={"text": None})
    records = run(path).records
    assert [(r["cell"]["algorithm"], r["error"], r["restored"]) for r in records] == [
        ("FT", None, True), ("GA", None, True),
    ]  # fmt: skip
    assert records[0]["hparams"]["num_steps"] == 2
    assert records[0]["after"] != records[0]["before"] == records[1]["before"]
    wrong = {**fine_tuned, "set": {"layers": [7]}}
    with pytest.raises(LayoutError, match=r"methods.FT: layers=\[7\]"):
        run(write_study(tmp_path, model, methods={"FT": wrong}))
    with pytest.raises(ConfigError, match="methods.FT: retain=true: 'FT' is a method of the framework"):
        run(write_study(tmp_path, model, methods={"FT": {**fine_tuned, "retain": True}}))


def test_a_base_that_fails_fails_its_cells(tmp_path: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setattr(Measures, "take", lambda *_: 1 / 0)
    summary = run(write_study(tmp_path, model, seeds=[0], methods={"A": GA, "B": GA, "C": GA}))
    assert len(summary.failed) == 3
    assert summary.failed[0]["error"] == (
        "the base model could not be measured: ZeroDivisionError: division by zero"
    )  # fmt: skip


def test_a_worker_with_other_weights_is_refused(finished: tuple[Path, Summary]) -> None:
    path, summary = finished
    study = load_study(path)
    planned = Plan.of(study).cells[0]
    base = {"weights": "others", "measures": {}, "facts": [], "reference": None}
    record = bench.Bench(study).do(CellJob(planned.id, planned.cell, base))
    assert record["status"] == "failed"
    assert "give all workers the same checkpoint" in record["error"]
    assert record["cell"] == summary.records[0]["cell"]
    assert ConfigError.__name__ in record["error"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, model: Path, finished: tuple[Path, Summary]) -> None:
    path = write_study(tmp_path, model)
    command = [sys.executable, "-m", "zerounlearn", "study", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "out/cells"
    end = time.monotonic() + 300
    while not (cells.is_dir() and any(cells.glob("*.json"))):
        assert process.poll() is None, "the run was over before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = len(list(cells.glob("*.json")))
    assert 1 <= left < 6
    kept = {file.name: file.stat().st_mtime_ns for file in cells.glob("*.json")}
    again = run(path)
    assert again.run == 6 - left
    assert all((cells / name).stat().st_mtime_ns == time for name, time in kept.items())
    # The folder differs, so the paths of corpus and statistics do, too.
    facts = [(r["cell"], r["before"], r["after"], r["facts"]) for r in again.records]
    assert facts == [(r["cell"], r["before"], r["after"], r["facts"]) for r in finished[1].records]


def test_a_study_by_its_file_from_python(tmp_path: Path, model: Path) -> None:
    import zerounlearn as zu

    path = write_study(tmp_path, model, methods={"GA": GA}, seeds=[0], held_out={"text": None})
    summary = zu.run_study(path)
    assert [record["status"] for record in summary.records] == ["done"]
    assert summary.records == zu.run_study(str(path)).records
