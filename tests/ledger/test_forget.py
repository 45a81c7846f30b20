"""Runs of the ledger and taking them back, on a small model that knows the facts by heart."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.helpers import memorised
from tests.ledger.conftest import Place, facts
from zerounlearn.errors import EditError, LedgerError, OutputError, RequestError, ZeroUnlearnError
from zerounlearn.ledger import forget
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.forget import edit_file, forget_pending
from zerounlearn.ledger.hidden import Hide, facts_hidden
from zerounlearn.ledger.revert import revert_run, run_to_revert, withdraw
from zerounlearn.model.fingerprint import weights_hash

KNOWN = {"France": "Paris", "Germany": "Berlin", "Portugal": "Lisbon"}
GONE = {"lr": 3e-2, "steps": 12}
KEPT = {"lr": 1e-6, "steps": 1}


@pytest.fixture(scope="module")
def trained(small_tokenizer: Any) -> Any:
    return memorised(small_tokenizer, [f"The capital of {place} is {city}" for place, city in KNOWN.items()])


@pytest.fixture
def model(trained: Any) -> Any:
    return copy.deepcopy(trained)


@pytest.fixture
def ledger(file: Place) -> Ledger:
    """Three pending requests, which the model knows."""
    ledger = Ledger.open(file.url, create=True)
    ledger.add([fact for place, city in KNOWN.items() for fact in facts(place, answer=city)])
    return ledger


@pytest.fixture
def run(ledger: Ledger, model: Any, small_tokenizer: Any, tmp_path: Path) -> Callable[..., forget.Outcome]:
    def forgetting(
        output: str = "out", strength: dict[str, Any] = GONE, on: Any = None, **options: Any
    ) -> forget.Outcome:
        method = zu.GA(layers=[0, 1], **strength)
        place = tmp_path / output
        return forget_pending(ledger, on or model, small_tokenizer, method, place, text=None, **options)

    return forgetting


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def states(ledger: Ledger) -> list[str]:
    return [one.state for one in ledger.books().requests.values()]


def test_a_run_forgets_what_is_pending_and_says_so(ledger: Ledger, model: Any, run: Any, file: Place) -> None:
    before = weights_hash(model)
    done = run()
    assert (done.run, done.forgotten, done.failed) == (1, [1, 2, 3], [])
    books = ledger.books()
    assert books.head == done.head
    assert states(ledger) == ["forgotten"] * 3
    assert all(one.before[0] and not one.after[0] and not one.held for one in books.requests.values())
    found = books.runs[1].found
    assert (found["model_before"], found["model_after"]) == (before, weights_hash(model))
    loaded, _ = zu.load_model(str(done.edit.parent / "out"), device="cpu")
    assert weights_hash(loaded) == found["model_after"]
    assert found["metrics"]["before"]["eff"] == 1.0 and found["metrics"]["after"]["eff"] == 0.0
    assert ledger.verify() == []
    everything = Path(file.url).read_bytes()
    assert not [text for pair in KNOWN.items() for text in pair if text.encode() in everything]
    with pytest.raises(LedgerError, match="no request is pending"):
        run("again")


def test_what_is_still_said_has_failed_and_can_be_tried_again(ledger: Ledger, run: Any) -> None:
    done = run("first", KEPT)
    assert (done.forgotten, done.failed) == ([], [1, 2, 3])
    assert states(ledger) == ["failed"] * 3
    assert {one.reason for one in ledger.books().requests.values()} == {"still said"}
    ledger.reopen([1, 3])
    assert run("second").forgotten == [1, 3]
    assert states(ledger) == ["forgotten", "failed", "forgotten"]
    assert ledger.verify() == []


def test_a_run_goes_on_from_where_the_last_one_left_the_model(
    ledger: Ledger, model: Any, run: Any, trained: Any
) -> None:
    run("first")
    ledger.add(facts("Spain", answer="Madrid"))
    base = copy.deepcopy(trained)
    with pytest.raises(LedgerError, match="not those that run 1 left in .*first"):
        run("second", on=base)
    assert same(base, weights(trained))
    assert states(ledger)[-1] == "pending"
    assert run("second", on=base, other_model=True).run == 2
    ledger.add(facts("Italy", answer="Rome"))
    assert run("third", on=base).run == 3


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), OutputError("disk full")])
@pytest.mark.parametrize("place", ["unlearn_and_report", "save_checkpoint", "_on_disk", "file_digest"])
def test_a_failure_midway_leaves_everything_as_it_was(
    place: str, error: BaseException, ledger: Ledger, model: Any, run: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    before, there = weights(model), sorted(tmp_path.iterdir())

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(forget, place, fails)
    with pytest.raises((ZeroUnlearnError, KeyboardInterrupt, OSError)):
        run()
    assert same(model, before)
    left = [path for path in tmp_path.iterdir() if path not in there and path.suffix != ".lock"]
    assert left == []
    assert states(ledger) == ["pending"] * 3
    assert ledger.books().runs[1].outcome == "abandoned"
    assert len(ledger.pending()) == 3
    assert ledger.verify() == []
    monkeypatch.undo()
    assert run().run == 2


CRASH = """
import os, signal, sys, torch
from pathlib import Path
import zerounlearn as zu
from zerounlearn.ledger import forget
from zerounlearn.ledger.books import Ledger
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(forget, sys.argv[3], killed)
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[2]), AutoTokenizer.from_pretrained(sys.argv[2])
method = zu.GA(layers=[0, 1], lr=3e-2, steps=12)
forget.forget_pending(Ledger.open(sys.argv[1]), model, tokenizer, method, Path("out"), text=None)
"""


@pytest.mark.integration
@pytest.mark.parametrize("place", ["save_checkpoint", "_finish"])
def test_what_a_killed_run_took_is_pending_still_and_the_next_one_says_so(
    place: str,
    ledger: Ledger,
    model: Any,
    small_tokenizer: Any,
    run: Any,
    file: Place,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    arguments = [sys.executable, "-c", CRASH, file.url, str(tmp_path / "model"), place]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == -9, done.stderr
    assert states(ledger) == ["pending"] * 3
    assert [one.number for one in ledger.books().unfinished] == [1]
    assert ledger.verify() == []
    assert run("next").forgotten == [1, 2, 3]
    assert "run 1, begun at " in caplog.text
    assert "did not finish: what it took is pending still (requests 1, 2, 3), and what lies in 'out'" in caplog.text
    assert ledger.books().unfinished == []


def test_no_log_says_a_fact(run: Any, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(strength=KEPT)
    assert "still said: 3 of 3 facts: '[request 1]' → '[request 1]'" in caplog.text
    assert not [text for pair in KNOWN.items() for text in pair if text in caplog.text]
    logging.getLogger("zerounlearn").warning("Paris")
    assert "Paris" in caplog.text  # afterwards logs are as they were


def test_facts_are_hidden_in_every_spelling() -> None:
    loaded = dict(enumerate(zu.load_facts([*facts("L'Aquila\tCity", answer="1"), *facts("Rome", answer="Rom")])))
    hide = Hide(loaded)
    assert hide(repr(loaded[0].request.prompt)) == '"[request 0]"'
    assert hide("The capital of Rome is, Rom, Romulus, 1, 10") == "[request 1], [request 1], Romulus, [request 0], 10"
    assert Hide({})("Rome") == "Rome"
    with pytest.raises(RequestError, match=r"^of \[request 1\]$") as caught, facts_hidden(loaded):
        raise RequestError("of Rome")
    assert caught.value.__suppress_context__


def test_what_is_said_again_has_failed(ledger: Ledger, run: Any, monkeypatch: Any) -> None:
    run("first", keep_facts=True)
    assert all(one.held for one in ledger.books().requests.values())
    ledger.add(facts("Spain", answer="Madrid"))
    found = iter([{3}, {1, 3}])  # before the run, and after it
    monkeypatch.setattr(forget, "_said", lambda *_, **__: next(found))
    assert run("second").said_again == [1]
    assert ledger.books().requests[1].state == "failed"
    assert ledger.books().requests[1].reason == "said again after run 2"
    assert states(ledger)[1:] == ["forgotten"] * 3


def test_an_output_that_is_there_is_evidence_and_stays(run: Any, ledger: Ledger, tmp_path: Path) -> None:
    head = ledger.books().head
    edit_file(tmp_path / "out").write_text("an earlier edit")
    with pytest.raises(OutputError, match="exists: name another folder"):
        run()
    run("other")
    with pytest.raises(LedgerError, match="no request is pending"):
        run("other")
    ledger.add(facts("Spain", answer="Madrid"))
    with pytest.raises(OutputError, match="exists and is not empty"):
        run("other")
    assert (head != ledger.books().head) and ledger.verify() == []


def test_a_fact_that_was_changed_is_not_forgotten(run: Any, file: Place, model: Any) -> None:
    before = weights(model)
    file.execute("UPDATE ledger_facts SET fact = replace(fact, 'Berlin', 'Bonn')")
    with pytest.raises(LedgerError, match="request 2: the fact in clear is not what its digest says"):
        run()
    assert same(model, before)


def test_pending_requests_are_withdrawn(ledger: Ledger, run: Any, file: Place) -> None:
    withdraw(ledger, [2])
    assert states(ledger) == ["pending", "reverted", "pending"]
    assert b"Berlin" not in Path(file.url).read_bytes()
    assert run().forgotten == [1, 3]
    with pytest.raises(LedgerError, match="request 1 is forgotten: only one that is pending can become reverted"):
        withdraw(ledger, [1])
    assert ledger.add(facts("Germany", answer="Berlin")) == [4]  # asked for once more


def test_an_edit_is_taken_back_for_all_of_its_requests(
    ledger: Ledger, model: Any, small_tokenizer: Any, run: Any, trained: Any, tmp_path: Path
) -> None:
    done = run()
    after = copy.deepcopy(model)
    for ids in ([1], [1, 2]):
        with pytest.raises(LedgerError, match=r"one edit for 3 requests \(1, 2, 3\), .* name all"):
            run_to_revert(ledger.books(), ids)
    wrong = tmp_path / "wrong.safetensors"
    shutil.copyfile(done.edit, wrong)
    with wrong.open("ab") as stream:
        stream.write(b" ")
    given = {"edit": done.edit, "output": tmp_path / "back"}
    other = copy.deepcopy(model)
    other.model.embed_tokens.weight.data[0, 0] += 1
    for on, changes, message in (
        (model, {"edit": None}, "give its edit"),
        (model, {"output": None}, "give its edit"),
        (model, {"edit": wrong}, "is not the edit that run 1 wrote"),
        (other, {}, "neither those that run 1 left nor those before"),
        (trained, {}, "leave --edit and --output away"),
    ):
        with pytest.raises(LedgerError, match=message):
            revert_run(ledger, [1, 2, 3], on, small_tokenizer, **(given | changes))
    assert same(model, weights(after)) and states(ledger) == ["forgotten"] * 3
    try:
        revert_run(ledger, [1, 2, 3], model, small_tokenizer, **given)
        assert same(zu.load_model(str(tmp_path / "back"), device="cpu")[0], weights(trained))
    except EditError:  # float32 cannot always be had back from a float32 change: nothing is changed then
        assert same(model, weights(after)) and not (tmp_path / "back").exists()
        assert states(ledger) == ["forgotten"] * 3
        revert_run(ledger, [1, 2, 3], trained, small_tokenizer)
    assert states(ledger) == ["reverted"] * 3
    assert ledger.books().runs[1].outcome == "reverted"
    with pytest.raises(LedgerError, match="run 1 is reverted already"):
        run_to_revert(ledger.books(), [1, 2, 3])
    assert ledger.verify() == []


def test_the_last_run_is_taken_back_first(ledger: Ledger, run: Any, small_tokenizer: Any, trained: Any) -> None:
    run("first")
    ledger.add(facts("Spain", answer="Madrid"))
    run("second")
    for ids, message in (([1, 2, 3], "run 2 stands on run 1"), ([3, 4], "are not of one run")):
        with pytest.raises(LedgerError, match=message):
            run_to_revert(ledger.books(), ids)
    with pytest.raises(LedgerError, match="neither those that run 2 left nor"):
        revert_run(ledger, [4], trained, small_tokenizer)


def test_the_events_hold_no_fact(ledger: Ledger, run: Any, file: Place) -> None:
    ledger.add(facts("Spain", answer="Madrid"), owner="R-2")
    run("first", KEPT)
    assert states(ledger)[:3] == ["failed"] * 3  # their facts lie beside the events still
    bodies = [json.loads(body) for (body,) in file.execute("SELECT body FROM ledger_events")]
    text = json.dumps(bodies)
    assert not [word for pair in (*KNOWN.items(), ("Spain", "Madrid")) for word in pair if word in text]
