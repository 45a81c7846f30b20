"""Statistics by two processes that talk over gloo: exact, resumable, and nobody waits for one that failed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import multiprocessing
from torch.testing import assert_close

from tests.conftest import small_bpe
from tests.helpers import hparams_for, tiny
from zerounlearn.cli.command import terminated_as_interrupted
from zerounlearn.data.corpora import Corpus
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.statistics import collect as module
from zerounlearn.statistics.collect import second_moments
from zerounlearn.statistics.processes import Processes

TEXTS = [f"{'People in Lisbon said so. ' * (i % 5)}In the year {i} the weather was fine." for i in range(600)]
FEW = TEXTS[:1]
BUSY = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def settings(folder: Path, **changes: object):
    fixed = {"mom2_n_samples": 600, "stats_dir": str(folder), "mom2_dtype": "float64", "stats_batch_tokens": 512}
    return hparams_for([1, 2], **(fixed | changes))


def worker(index: int, port: int, folder: Path) -> None:
    """What each of the two processes does, one scenario after another; the last one breaks the group."""
    os.environ |= BUSY | {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    tokenizer = small_bpe()
    real = module.forward_until
    texts_run: list[int] = []

    def scenario(
        name: str, texts: list[str] = TEXTS, *, before: Callable[[int], None] = lambda _: None, weight: float = 1.0
    ) -> None:
        def spy(*args: Any, **kwargs: Any) -> None:
            before(sum(texts_run))
            real(*args, **kwargs)
            texts_run.append(len(kwargs["input_ids"]))

        texts_run.clear()
        module.forward_until = spy
        model = tiny("llama", len(tokenizer))
        model.model.layers[0].mlp.up_proj.weight.data.mul_(weight)
        hp = settings(folder / name.split(" ")[0])
        start = time.monotonic()
        try:
            found = second_moments(
                find_layout(model, hp), tokenizer, hp, Corpus("tiny", lambda: texts), processes=processes
            )
            outcome = {"traces": [float(found[layer].trace()) for layer in hp.layers]}
        except BaseException as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
        outcome |= {"texts": sum(texts_run), "seconds": time.monotonic() - start, "count": processes.count}
        (folder / f"{name}.{index}.json").write_text(json.dumps(outcome))

    def fail(done: int) -> None:
        if index == 1 and done >= 270:
            raise MemoryError("no room for this batch")

    def die(done: int) -> None:
        if index == 1 and done >= 100:
            os._exit(7)

    with Processes.launched("cpu") as processes:
        scenario("equal")
        scenario("few", FEW)
        scenario("failing", before=fail)
        scenario("failing resumed")
        if index == 0:
            damaged = folder / "damaged/model/tiny_stats/model.layers.2.mlp.down_proj_float64_mom2_600.npz"
            damaged.parent.mkdir(parents=True)
            damaged.write_text("hello")
        scenario("damaged")
        scenario("another", weight=1.0 + index)
        scenario("dying", before=die)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """All scenarios, run once: the folder with their caches, and what each process saw of each."""
    folder = tmp_path_factory.mktemp("processes")
    port = free_port()
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=worker, args=(i, port, folder)) for i in range(2)]
    for process in both:
        process.start()
    deadline = time.monotonic() + 240
    for process in both:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [i for i, process in enumerate(both) if process.is_alive()]
    for i in hung:
        both[i].kill()
    assert not hung, f"processes {hung} hang"
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        found.setdefault(path.name.split(".")[0], []).append(json.loads(path.read_text()))
    return folder, found


def stored(folder: Path) -> dict[int, tuple[int, np.ndarray]]:
    files = {i: folder / f"model/tiny_stats/model.layers.{i}.mlp.down_proj_float64_mom2_600.npz" for i in (1, 2)}
    arrays = {i: np.load(file) for i, file in files.items()}
    return {i: (int(a["mom2.count"]), a["mom2.mom2"]) for i, a in arrays.items()}


def alone(folder: Path, texts: list[str] = TEXTS) -> dict[int, tuple[int, np.ndarray]]:
    tokenizer = small_bpe()
    hp = settings(folder)
    second_moments(find_layout(tiny("llama", len(tokenizer)), hp), tokenizer, hp, Corpus("tiny", lambda: texts))
    return stored(folder)


@pytest.mark.parametrize(("scenario", "texts"), [("equal", TEXTS), ("few", FEW), ("failing", TEXTS)])
def test_two_processes_find_what_one_finds(scenario: str, texts: list[str], outcomes, tmp_path: Path) -> None:
    folder, found = outcomes
    merged, single = stored(folder / scenario), alone(tmp_path, texts)
    for layer in (1, 2):
        assert merged[layer][0] == single[layer][0] > 0
        assert_close(torch.from_numpy(merged[layer][1]), torch.from_numpy(single[layer][1]), rtol=1e-9, atol=1e-12)
    if scenario != "failing":
        one, other = found[scenario]
        assert one["count"] == other["count"] == 2
        assert one["texts"] + other["texts"] == len(texts), "each text went through one process"
        assert abs(one["texts"] - other["texts"]) <= 1
        assert one["traces"] == other["traces"], "both read the one cache"
    assert not list((folder / scenario).rglob(".*")), "no unfinished sums are left"


def test_a_failure_stops_all_and_what_was_done_is_kept(outcomes) -> None:
    found = outcomes[1]
    main, other = found["failing"]
    assert (other["error"], other["message"]) == ("MemoryError", "no room for this batch")
    assert main["error"] == "StatisticsError"
    assert "process 1 of 2 failed (MemoryError: no room for this batch)" in main["message"]
    main, other = found["failing resumed"]
    assert "error" not in main and "error" not in other
    assert main["texts"] == 0, "process 0 had done its part"
    assert other["texts"] == 300 - 256, "process 1 goes on behind its last whole chunk"


@pytest.mark.parametrize(
    ("scenario", "failed", "message"),
    [("damaged", 0, "unreadable or truncated"), ("another", 1, "process 1 has another model than process 0")],
)
def test_what_one_process_finds_wrong_stops_both(scenario: str, failed: int, message: str, outcomes) -> None:
    both = outcomes[1][scenario]
    assert {each["error"] for each in both} == {"StatisticsError"}
    assert message in both[failed]["message"]
    assert f"process {failed} of 2 failed (StatisticsError: " in both[1 - failed]["message"]
    assert both[0]["texts"] == both[1]["texts"] == 0


def test_a_process_that_is_killed_is_not_waited_for(outcomes) -> None:
    folder, found = outcomes
    (main,) = found["dying"]
    assert main["error"] == "StatisticsError"
    assert "another process is gone" in main["message"]
    assert main["seconds"] < 60
    kept = list((folder / "dying").rglob(".*.0-of-2.partial.npz"))
    assert len(kept) == 1
    assert int(np.load(kept[0])["done"]) == 256


def test_a_launchers_sigterm_unwinds_the_process() -> None:
    before = signal.getsignal(signal.SIGTERM)
    unwound: list[bool] = []
    with pytest.raises(SystemExit) as stopped, terminated_as_interrupted():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            unwound.append(True)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert unwound
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_under_accelerate_launch(tmp_path: Path) -> None:
    tokenizer = small_bpe()
    tiny("llama", len(tokenizer), dtype=torch.float32).save_pretrained(tmp_path / "llama-tiny")
    tokenizer.save_pretrained(tmp_path / "llama-tiny")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS[:40]))
    hp = dataclasses.asdict(settings(tmp_path, mom2_n_samples=40))
    run = {k: hp[k] for k in ("layers", "mom2_n_samples", "mom2_dtype")}
    run |= {"device": "cpu", "model_name": str(tmp_path / "llama-tiny"), "mom2_dataset": str(tmp_path / "corpus.txt")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    # Port 0 stands for any that is free, but not with torch 2.4.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", str(free_port())]
    totals = []
    for name, before in (("one", []), ("two", launcher)):
        command = [sys.executable, *before, "-m", "zerounlearn", "stats", str(tmp_path / "run.yaml")]
        done = subprocess.run(
            [*command, f"stats_dir={tmp_path / name}"],
            capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=os.environ | BUSY,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("layer 1: (48, 48), trace") == 1, "only the main process speaks"
        (file,) = (tmp_path / name / "llama-tiny").rglob("model.layers.1.mlp.down_proj_float64_mom2_40.npz")
        arrays = np.load(file)
        totals.append((int(arrays["mom2.count"]), arrays["mom2.mom2"]))
    assert totals[0][0] == totals[1][0] > 0
    assert np.abs(totals[0][1] - totals[1][1]).max() < 1e-6 * np.abs(totals[0][1]).max()
    assert not np.array_equal(totals[0][1], totals[1][1]), "two sums were added up"
