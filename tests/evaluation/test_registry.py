"""The registry of metrics: its order, what it knows, a metric of somebody else's, and prompts that are run once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from tests.helpers import FACTS, tiny
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ConfigError, RegistrationError
from zerounlearn.evaluation import asked as asking
from zerounlearn.evaluation.asked import Asked, Settings
from zerounlearn.evaluation.probes import Known, Probes, unknown_warning
from zerounlearn.evaluation.registry import Goal, Group, in_order, metric, metrics, optional, take
from zerounlearn.model.answers import Score
from zerounlearn.model.tokens import Query
from zerounlearn.report.columns import column, columns
from zerounlearn.study.spec import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lengths():
    """A metric as a plugin writes it, taken out again afterwards."""
    needs = {"reference_method": "answer_length compares with a method: name it with reference_method"}

    @metric("answer_length", label="Length", goal=Goal.LOWER, meaning="Tokens of an answer.", needs=needs)
    def _length(asked: Asked) -> float | None:
        return fmean(len(tokens.ids) for tokens in asked.answers(asked.probes.eff))

    yield "answer_length"
    metrics.remove("answer_length")


def asked_of(tokenizer, **options: object) -> Asked:
    facts = [Fact(request, (f"I ask: {request.prompt}",), (("You are", "a reader"),)) for request in FACTS]
    model = tiny("llama", len(tokenizer))
    return Asked(model, tokenizer, Probes.of(facts), facts=facts, settings=Settings(generation_tokens=4), **options)


def test_a_metric_of_somebody_elses_is_measured_shown_and_known_to_studies(lengths: str, small_tokenizer) -> None:
    asked = asked_of(small_tokenizer)
    found = take(asked, [lengths])
    assert found[lengths] == fmean(len(small_tokenizer(f" {r.answer}")["input_ids"]) for r in FACTS)
    assert lengths not in take(asked)
    assert column(lengths).head == "Length ↓"
    assert [c.metric for c in columns(["peak_bytes", lengths, "eff"])] == ["eff", lengths, "peak_bytes"]
    study = load_study(ROOT / "studies/quick.yaml", [f"metrics=[{lengths}]", "reference_method=GA"])
    assert study.metrics == (lengths,)
    with pytest.raises(ConfigError, match="metrics: answer_length compares"):
        load_study(ROOT / "studies/quick.yaml", [f"metrics=[{lengths}]"])
    metrics.remove(lengths)
    with pytest.raises(ConfigError, match="unknown 'answer_length'"):
        load_study(ROOT / "studies/quick.yaml", [f"metrics=[{lengths}]"])


def test_a_name_is_taken_once_and_an_unknown_one_is_refused(lengths: str, small_tokenizer) -> None:
    with pytest.raises(RegistrationError, match="answer_length"):
        metric(lengths, label="Other", goal=Goal.NONE)(lambda asked: 0.0)
    with pytest.raises(ConfigError, match="did you mean 'rouge_l'"):
        take(asked_of(small_tokenizer), ["rouge_k"])


@pytest.mark.integration
def test_the_order_does_not_depend_on_what_is_imported_first() -> None:
    code = "import zerounlearn.evaluation.{}; from zerounlearn.evaluation.registry import in_order; print(*in_order())"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code.format(first)], capture_output=True, text=True, check=True
        ).stdout.split()[:24].__str__()
        for first in ("fluency", "registry")
    }  # fmt: skip
    assert orders == {str(list(in_order())[:24])}


def test_every_metric_says_what_it_is() -> None:
    for name, one in in_order().items():
        assert one.column.metric == name
        assert one.column.label and one.column.meaning.endswith(".")
        assert metrics.entry(name).summary == one.column.meaning
    assert {"eff", "gen", "spe", "ppl"} <= set(in_order()) - set(optional())
    assert in_order()["eff_probability"].column.group is Group.PROBABILITY


def test_every_prompt_is_run_once_for_all_metrics(small_tokenizer, monkeypatch) -> None:
    runs: Counter[object] = Counter()
    real_answers, real_texts = asking.answer_tokens, asking.generate
    monkeypatch.setattr(asking, "answer_tokens", lambda m, t, new: (runs.update(new), real_answers(m, t, new))[1])

    def texts(model, tokenizer, prompts, tokens):
        runs.update((prompt, tokens) for prompt in prompts)
        return real_texts(model, tokenizer, prompts, tokens=tokens)

    monkeypatch.setattr(asking, "generate", texts)
    asked = asked_of(small_tokenizer)
    found = take(asked, ["rouge_l", "rouge_l_neighbours", "exact_memorisation", "fluency", "consistency"])
    assert {"eff", "gen", "spe", "spe_relation", "rouge_l", "fluency"} <= set(found)
    assert set(runs.values()) == {1}
    assert found["gen"] == fmean(s.said for s in asked.scores(asked.probes.gen))


def test_gen_of_zsre_counts_tokens(small_tokenizer) -> None:
    plain = asked_of(small_tokenizer)
    by_token = asked_of(small_tokenizer, token_by_token=[("You are", "a reader of it")])
    tokens = by_token.answers(by_token.probes.gen)
    assert take(by_token)["gen"] == fmean(float(t.hit.double().mean()) for t in tokens)
    assert take(by_token)["eff"] == take(plain)["eff"]
    assert take(by_token)["spe"] == fmean(
        float(t.hit.double().mean()) for t in by_token.answers(by_token.token_by_token)
    )


def test_known_counts_what_the_base_model_answers() -> None:
    said, unsaid = Query("a", "b"), Query("c", "d")
    probes = Probes((said, unsaid, Query("e", "f")), gen=(said,))
    verdicts = dict.fromkeys(probes.items(), Score(False, 0.0)) | {said: Score(True, 1.0)}
    known = probes.known(verdicts)
    assert known == {"eff": Known(3, 1), "gen": Known(1, 1)}
    assert "says 1 of the 3 answers" in unknown_warning(known)
    assert unknown_warning({"eff": Known(2, 1)}) is None
