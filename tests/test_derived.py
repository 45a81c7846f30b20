"""An edit on a model that descends from its own: both ways measured, the better one left, everything put back else."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import zerounlearn as zu
from tests.helpers import FACTS, memorised
from tests.method.test_reapply import fine_tuned, same, weights
from zerounlearn import derived
from zerounlearn.api import Evaluation
from zerounlearn.cli import main
from zerounlearn.data.corpora import held_out_corpus, open_corpus
from zerounlearn.data.fact import Fact
from zerounlearn.data.sets.embedded import packaged_entries, split_entries
from zerounlearn.derived import replay
from zerounlearn.errors import ConfigError, EditError, IllPosedError
from zerounlearn.method.base import UnlearningMethod
from zerounlearn.method.edit import Edit
from zerounlearn.model.answers import score
from zerounlearn.report.run import Measured, Phase

ROOT = Path(__file__).resolve().parents[1]
TEXT = ["The weather today was fine.", "People speak, as they do in Lisbon."]


def method() -> UnlearningMethod:
    return zu.GA(layers=[0, 1], steps=30, lr=1e-2)


def facts() -> list[Fact]:
    return [replace(Fact(FACTS[0]), neighbours=(("People in Rio de Janeiro speak", "Portuguese"),)), Fact(FACTS[1])]


@pytest.fixture(scope="module")
def trained(small_tokenizer: Any) -> Any:
    """A small model that knows the facts by heart."""
    return memorised(small_tokenizer, [request.query.text for request in FACTS])


@pytest.fixture
def parent(trained: Any) -> Any:
    before = weights(trained)
    yield trained
    with torch.no_grad():
        for name, value in trained.named_parameters():
            value.copy_(before[name])


@pytest.fixture
def edit(parent: Any, small_tokenizer: Any, tmp_path: Path) -> Edit:
    made = zu.unlearn(parent, small_tokenizer, facts(), method())
    made.revert(parent)
    made.save(tmp_path / "edit.safetensors")
    return Edit.load(tmp_path / "edit.safetensors")


def test_both_ways_are_measured_and_the_better_one_is_left(
    parent: Any, edit: Edit, small_tokenizer: Any, tmp_path: Path
) -> None:
    fine_tuned(parent, 0.003)
    before = weights(parent)
    done = replay(parent, small_tokenizer, edit, facts(), text=TEXT)
    assert done.before is not None
    assert done.report is not None
    assert (done.before.phase.eff, [way.name for way in done.ways]) == (1.0, ["re-apply", "re-solve"])
    chosen = next(way for way in done.ways if way.name == done.chosen)
    assert chosen.still_said == 0
    assert zu.evaluate(parent, small_tokenizer, facts(), text=TEXT).facts == chosen.evaluation.facts
    assert done.report.after.eff == 0
    assert {name for name in before if not torch.equal(parent.get_parameter(name), before[name])} == set(edit.digests)
    done.save(tmp_path / "report")
    described = json.loads((tmp_path / "report/replay.json").read_text())
    assert (described["chosen"], len(described["ways"]), len(described["weights"])) == (done.chosen, 2, 2)
    assert json.loads((tmp_path / "report/report.json").read_text())["after"]["eff"] == 0
    done.edit.revert(parent)
    assert same(parent, before)


def made_up(eff: list[bool], spe: float, ppl: float) -> Evaluation:
    one = [Measured((said, 0.5), (), (), (), "") for said in eff]
    return Evaluation(Phase(sum(eff) / len(eff), 0.5, spe=spe, ppl=ppl), tuple(one))


@pytest.mark.parametrize(
    ("applied", "solved", "chosen"),
    [
        (made_up([True, False], 1.0, 10), made_up([False, False], 0.1, 90), "re-solve"),
        (made_up([False, False], 0.9, 10), made_up([False, False], 1.0, 10.5), "re-solve"),
        (made_up([False, False], 0.9, 10), made_up([False, False], 1.0, 12), "re-apply"),
        (made_up([False, False], 0.9, 10), made_up([False, False], 0.9, 10), "re-apply"),
    ],
    ids=["fewest said", "least lost", "of perplexity", "equal"],
)
def test_the_rule(
    applied: Evaluation,
    solved: Evaluation,
    chosen: str,
    parent: Any,
    edit: Edit,
    small_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the weights that are left are those that were measured."""
    fine_tuned(parent, 0.003)
    before, seen = weights(parent), []

    def measured(model: Any, *_: Any, **__: Any) -> Evaluation:
        seen.append(weights(model))
        return (made_up([True, True], 1.0, 10), applied, solved)[len(seen) - 1]

    monkeypatch.setattr(derived, "evaluate", measured)
    done = replay(parent, small_tokenizer, edit, facts())
    assert done.chosen == chosen
    assert same(parent, seen[1 if chosen == "re-apply" else 2])
    assert not same(parent, seen[2 if chosen == "re-apply" else 1])
    done.edit.revert(parent)
    assert same(parent, before)


def test_a_way_that_fails_is_said_and_the_other_is_taken(parent: Any, edit: Edit, small_tokenizer: Any) -> None:
    edit.method = "Nobody's"
    fine_tuned(parent, 0.003)
    done = replay(parent, small_tokenizer, edit, facts(), text=None)
    assert (done.chosen, 'no method "Nobody\'s"' in done.ways[1].failed) == ("re-apply", True)
    done.edit.revert(parent)
    other = replay(parent, small_tokenizer, edit, facts(), method=method(), text=None)
    assert other.ways[1].failed == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, IllPosedError])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_whatever_fails_leaves_the_model_as_it_was(
    call: int,
    error: type[BaseException],
    parent: Any,
    edit: Edit,
    small_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fine_tuned(parent, 0.003)
    before, real, calls = weights(parent), zu.evaluate, []

    def fails(*args: Any, **kwargs: Any) -> Evaluation:
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(derived, "evaluate", fails)
    with pytest.raises(error):
        replay(parent, small_tokenizer, edit, facts(), text=None)
    assert same(parent, before)


def test_without_facts_the_change_is_added_and_nothing_is_measured(
    parent: Any, edit: Edit, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tuned(parent, 0.003)
    before = weights(parent)
    done = replay(parent, small_tokenizer, edit)
    assert (done.chosen, done.before, done.report) == ("re-apply", None, None)
    assert not same(parent, before)
    done.edit.revert(parent)
    with pytest.raises(ConfigError, match="takes the facts"):
        replay(parent, small_tokenizer, edit, method=method())
    monkeypatch.setattr(zu.GA, "wraps_modules", True)
    with pytest.raises(ConfigError, match="wraps modules, which no checkpoint can hold"):
        replay(parent, small_tokenizer, edit, facts(), method=method())
    assert same(parent, before)


def test_a_model_with_the_edit_on_it_is_refused(parent: Any, edit: Edit, small_tokenizer: Any) -> None:
    edit.apply(parent)
    edited = weights(parent)
    with pytest.raises(EditError, match="the model has the edit already"):
        replay(parent, small_tokenizer, edit, facts())
    assert same(parent, edited)


@pytest.fixture
def child(parent: Any, small_tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "child"
    fine_tuned(parent, 0.003)
    parent.save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


def run(*args: Any) -> Any:
    return CliRunner().invoke(main, ["replay", *map(str, args)])


def test_the_command_writes_a_checkpoint_and_says_what_holds(edit: Edit, child: Path, tmp_path: Path) -> None:
    records = tmp_path / "facts.jsonl"
    lines = [{"prompt": f.request.prompt, "subject": f.request.subject, "answer": f.request.answer} for f in facts()]
    records.write_text("\n".join(map(json.dumps, lines)))
    fixed = [tmp_path / "edit.safetensors", child, "--device", "cpu"]
    hparams = tmp_path / "again.yaml"
    hparams.write_text(json.dumps({"alg_name": "GA", "model_name": "x", "layers": [0, 1], "steps": 30, "lr": 1e-2}))
    measured = ["--forget", records, "--text", "none", "--report", tmp_path / "r", "--method", hparams]
    result = run(*fixed, "--output", tmp_path / "out", *measured)
    assert result.exit_code == 0, result.output
    assert "re-solve: Eff 0" in result.output
    assert "The capital of France is" in result.output
    assert "written: re-" in result.output
    assert json.loads((tmp_path / "r/report.json").read_text())["hparams"]["model_name"] == str(child)
    assert json.loads((tmp_path / "r/replay.json").read_text())["ways"][1]["failed"] == ""
    assert not [f.name for f in (tmp_path / "out").iterdir() if f.suffix != ".json" and b"France" in f.read_bytes()]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    start = AutoModelForCausalLM.from_pretrained(child)
    assert not same(model, weights(start))
    plain = run(*fixed, "--output", tmp_path / "plain", "--parent", child)
    assert (plain.exit_code, "is not the weight that this edit was made on" in plain.output) == (1, True)
    plain = run(*fixed, "--output", tmp_path / "plain")
    assert (plain.exit_code, "nothing was measured" in plain.output) == (0, True)
    again = run(tmp_path / "edit.safetensors", child, "--output", tmp_path / "plain")
    assert (again.exit_code, "exists and is not empty" in again.output) == (1, True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "GA/smollm2-135m"], "pass --forget, too"),
        (["--report", "out/report", "--forget", "x.jsonl"], "holds the facts in clear"),
        (["--forget", "missing.jsonl"], "'missing.jsonl' does not exist"),
        (["--device", "banana"], "--device='banana'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    extra: list[str], message: str, edit: Edit, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    result = run("edit.safetensors", child, "--output", "out", *extra)
    assert result.exit_code == 1
    assert message in result.output
    assert not Path("out").exists()


def known_facts(model: Any, tokenizer: Any, n: int) -> list[Fact]:
    """Packaged facts that the model says, of relations in turn, as examples/demo.py chooses."""
    _, entries = split_entries(packaged_entries())
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(0)).tolist()[: 6 * n]
    said = score(model, tokenizer, [entries[i].fact.request.query for i in order])
    by_topic: dict[str, list[Fact]] = {}
    for i, scored in zip(order, said, strict=True):
        if scored.said:
            by_topic.setdefault(entries[i].topic, []).append(entries[i].fact)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_topic.values()))
    return [fact for fact in turns if fact is not None][:n]


@pytest.mark.slow
def test_a_fine_tuned_child_of_the_real_model_forgets_what_its_parent_forgot(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """Ten facts, 50 steps on Wikipedia, then the edit again: Eff ≤ 5 %, specificity as on the parent."""
    model, tokenizer = zu.load_model(str(smollm2_path), device="cpu")
    wanted = known_facts(model, tokenizer, 10)
    changes = [f"model_name={smollm2_path}", f"stats_dir={ROOT / 'data/stats'}"]
    run = zu.load_method(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml", changes)
    edit = zu.unlearn(model, tokenizer, wanted, run)
    text = held_out_corpus("embedded").texts()[:6]
    on_parent = zu.evaluate(model, tokenizer, wanted, text=text)
    edit.save(tmp_path / "edit.safetensors")
    edit.revert(model)
    fine_tune(model, tokenizer, 50)
    before = weights(model)
    loaded = Edit.load(tmp_path / "edit.safetensors")
    again = run.replace(stats_dir=str(tmp_path), mom2_n_samples=100)
    done = replay(model, tokenizer, loaded, wanted, method=again, text=text)
    seen = f"parent {on_parent}; child {done.before}; {[(way.name, str(way.evaluation)) for way in done.ways]}"
    assert done.before is not None
    assert done.report is not None
    assert done.before.phase.eff >= 0.8, "the child still knew them"
    assert done.report.after.eff <= 0.05, seen
    assert done.report.after.spe >= on_parent.phase.spe - 0.1, seen
    assert done.report.after.ppl <= 1.1 * done.before.phase.ppl, seen
    assert [way.still_said for way in done.ways] == [0, 0], seen
    done.edit.revert(model)
    assert same(model, before)


def fine_tune(model: Any, tokenizer: Any, steps: int) -> None:
    """On ordinary text that has nothing to do with the facts, one text of 128 tokens a step."""
    texts, generator = open_corpus("embedded").texts(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.train()
    for at in torch.randint(len(texts), (steps,), generator=generator).tolist():
        ids = torch.tensor([tokenizer(texts[at])["input_ids"][:128]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
