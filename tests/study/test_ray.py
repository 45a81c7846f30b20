"""The same study on a local Ray of two workers, one of which is killed in the middle: the same table."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.study.small_study import GRADIENT, checkpoint, comparable, write_study
from zerounlearn.errors import ConfigError
from zerounlearn.study.cells import PrepareJob
from zerounlearn.study.engines import LocalEngine, RayEngine
from zerounlearn.study.run import run_study
from zerounlearn.study.spec import load_study

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'zerounlearn[ray]'")
GA = {"hparams": str(Path(__file__).resolve().parents[2] / "hparams/GA/smollm2-135m.yaml"), "set": GRADIENT}


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer) -> Path:
    return checkpoint(tmp_path_factory.mktemp("study") / "llama-tiny", small_tokenizer)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path, model: Path) -> None:
    path = write_study(tmp_path, model, seeds=[0, 1, 2])
    study = load_study(path)
    engine = RayEngine(study, workers=2, cpus=0.5)
    killed: list[int] = []
    seen: list[dict[str, Any]] = []

    def kill_one_at_work(record: dict[str, Any]) -> None:
        """One worker has just finished a cell; the other is in the middle of one, and its title says so."""
        seen.append(record)
        for process in [] if killed else psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may end while we look
                if "".join(process.cmdline()).startswith("ray::_Worker.do"):
                    process.kill()
                    killed.append(process.pid)
                    return

    summary = run_study(study, engine, on_cell=kill_one_at_work)
    assert killed, "no worker was caught at work"
    assert not ray.is_initialized(), "the cluster that the engine started ends with it"
    assert len(seen) == summary.run == 9
    assert not summary.failed
    local = load_study(path, [f"output={tmp_path / 'local'}"])
    expected = run_study(local, LocalEngine(local))
    assert [comparable(record) for record in summary.records] == [comparable(record) for record in expected.records]


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_and_the_rest_goes_on(tmp_path: Path, model: Path) -> None:
    study = load_study(write_study(tmp_path, model, methods={"GA": GA}, seeds=[0]))
    with RayEngine(study, workers=1, cpus=0.5) as engine:
        engine._actors[0].do = _Deadly(engine._actors[0].do)
        engine._actor = lambda: _deadly(RayEngine._actor(engine))  # type: ignore[method-assign]
        (job, record), (_, other) = engine.run([PrepareJob(("GA", "deadly")), PrepareJob(("GA",))])
        assert job == PrepareJob(("GA", "deadly"))
        assert record["status"] == "failed"
        assert "lost 3 workers" in record["error"]
        assert other["status"] == "done"


def _deadly(actor: Any) -> Any:
    actor.do = _Deadly(actor.do)
    return actor


class _Deadly:
    """Kills the worker when it is given the job named `deadly`."""

    def __init__(self, do: Any) -> None:
        self.do = do

    def remote(self, job: Any) -> Any:
        if "deadly" in job.methods:
            return self.do.remote(_Exit())
        return self.do.remote(job)


class _Exit:
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused(tmp_path: Path, model: Path) -> None:
    study = load_study(write_study(tmp_path, model))
    with pytest.raises(ConfigError, match="2 workers with 0.5 GPU each: the cluster has 0"), RayEngine(study, gpus=0.5):
        pass
    assert not ray.is_initialized()


def test_wrong_sizes(tmp_path: Path, model: Path) -> None:
    study = load_study(write_study(tmp_path, model))
    for wrong in ({"workers": 0}, {"gpus": -0.5}, {"cpus": 0}):
        with pytest.raises(ConfigError, match="expected at least one worker"):
            RayEngine(study, **wrong)
