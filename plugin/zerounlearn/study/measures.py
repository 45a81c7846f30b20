"""The numbers of one model on one draw, under the names that a study's outputs know."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.corpora import held_out_corpus
from zerounlearn.data.entry import Question
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ZeroUnlearnError
from zerounlearn.evaluation.memorisation import exact_memorisation, extraction_strength, probability
from zerounlearn.evaluation.perplexity import perplexity
from zerounlearn.model.answers import AnswerTokens, answer_tokens, score, text_tokens
from zerounlearn.model.generate import generate
from zerounlearn.model.tokens import Query
from zerounlearn.study.material import Material
from zerounlearn.study.spec import Study

_PAPER_TOKENS = 100
_MIA = ("mia_loss", "mia_min_k", "mia_min_k_pp", "mia_zlib")
_FLUENCY_TOKENS = 100
_NEIGHBOURS = 100
"""Neighbourhood prompts that ROUGE-L is taken on, at most."""
_CHOICES = ("real_authors", "world_facts")
"""TOFU's parts whose probability is taken among the answers to choose from."""


@dataclass(frozen=True)
class Measures:
    """All that a study measures."""

    study: Study

    def settings(self) -> dict[str, Any]:
        """Everything the numbers depend on, but for model and draw.

        Raises:
            ConfigError: a text is neither known nor an existing file, or a standard task is unknown.
            FrameworkError: there are standard tasks, and no harness to run them is installed.
        """
        s = self.study
        if s.lm_eval.tasks:
            self._check_tasks()
        texts = [None if t is None else held_out_corpus(t).name for t in (s.held_out.text, s.held_out.paper)]
        tasks = [list(s.lm_eval.tasks), s.lm_eval.limit, s.lm_eval.folder]
        settings = {"metrics": sorted(s.metrics), "texts": texts, "tokens": s.held_out.tokens, "lm_eval": tasks}
        return settings | {"generation_tokens": s.generation_tokens}

    def _check_tasks(self) -> None:
        from zerounlearn.evaluation.harness import check_tasks

        try:
            check_tasks(self.study.lm_eval.tasks, self._task_folder)
        except ZeroUnlearnError as error:
            raise type(error)(f"lm_eval: {error}") from error

    @property
    def _task_folder(self) -> Path | None:
        folder = self.study.lm_eval.folder
        return None if folder is None else Path(folder)

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        """The beginning of the texts; perplexity reads a few thousand tokens, and a corpus may hold millions."""
        held_out = self.study.held_out
        most = 1 + max(held_out.tokens, _PAPER_TOKENS)  # a text has one token at least, but for empty ones
        names = {"ppl": held_out.text, "ppl_paper": held_out.paper}
        return {
            key: list(islice((text for text in held_out_corpus(name).texts() if text.strip()), most))
            for key, name in names.items()
            if name is not None
        }

    def take(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        material: Material,
        reference: Sequence[float] | None = None,
    ) -> dict[str, float]:
        """All numbers by name; a metric that the draw has nothing for is absent.

        Args:
            model: any causal language model, left as it was.
            tokenizer: its tokenizer.
            material: the draw.
            reference: truth ratios of a model that never saw the forget set, for forget quality.
        """
        wanted = set(self.study.metrics)
        found = material.probes.measure(model, tokenizer)
        if material.token_by_token:
            tokens = answer_tokens(model, tokenizer, material.token_by_token)
            found["spe"] = statistics.fmean(exact_memorisation(t.hit) for t in tokens)
            found["spe_probability"] = statistics.fmean(probability(t.log_p) for t in tokens)
        for name, texts in self._texts.items():
            count = self.study.held_out.tokens if name == "ppl" else _PAPER_TOKENS
            found[name] = perplexity(model, tokenizer, texts, tokens=count)
        if wanted & {"exact_memorisation", "extraction_strength"}:
            tokens = answer_tokens(model, tokenizer, material.probes.eff)
            memorised = {"exact_memorisation": exact_memorisation, "extraction_strength": extraction_strength}
            found |= {name: statistics.fmean(of(t.hit) for t in tokens) for name, of in memorised.items()}
        if "rouge_l" in wanted:
            found["rouge_l"] = self._rouge(model, tokenizer, material.probes.eff)
            if "rouge_l_neighbours" in wanted and material.probes.spe:
                found["rouge_l_neighbours"] = self._rouge(model, tokenizer, material.probes.spe[:_NEIGHBOURS])
        if wanted & {"truth_ratio", "forget_quality"} and material.questions:
            found |= _truth(truth_ratios(model, tokenizer, material.questions), reference)
        if wanted & set(_MIA) and material.questions:
            found |= _membership(model, tokenizer, material.questions)
        found |= _written(model, tokenizer, material, wanted)
        if "model_utility" in wanted and material.utility:
            found["model_utility"] = _utility(model, tokenizer, material.utility, self.study.generation_tokens)
        kept = {name: value for name, value in found.items() if name in wanted or name not in _ON_DEMAND}
        return kept | self._tasks(model, tokenizer)

    def _rouge(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Any) -> float:
        from zerounlearn.evaluation.rouge import rouge_l_recall

        texts = generate(model, tokenizer, [p for p, _ in items], tokens=self.study.generation_tokens)
        return statistics.fmean(rouge_l_recall(texts, [answer for _, answer in items]))

    def _tasks(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        chosen = self.study.lm_eval
        if not chosen.tasks:
            return {}
        from zerounlearn.evaluation.harness import standard_tasks

        results = standard_tasks(model, tokenizer, chosen.tasks, limit=chosen.limit, folder=self._task_folder)
        return {f"lm_eval/{task}/{name}": value for task, row in results.items() for name, value in row.items()}


_ON_DEMAND = {"exact_memorisation", "extraction_strength", "truth_ratio", "forget_quality", *_MIA}
"""Metrics that come in groups from one pass, of which a study may have asked for some."""


def said(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material
) -> list[dict[str, bool | float]]:
    """For each fact whether its sensitive answer is said, and its probability."""
    return [{"said": s.said, "probability": s.probability} for s in score(model, tokenizer, material.probes.eff)]


def truth_ratios(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[float]:
    """TOFU's R of each question."""
    from zerounlearn.evaluation.truth import truth_ratio

    items = [(q.prompt, text) for q in questions for text in (q.paraphrased, *q.perturbed)]
    found = iter(answer_tokens(model, tokenizer, items))
    ratios = []
    for question in questions:
        paraphrased, *perturbed = (next(found).log_p for _ in range(1 + len(question.perturbed)))
        ratios.append(truth_ratio(paraphrased, perturbed))
    return ratios


def _truth(ratios: Sequence[float], reference: Sequence[float] | None) -> dict[str, float]:
    from zerounlearn.evaluation.truth import forget_quality, truth_ratio_forgotten

    found = {"truth_ratio": truth_ratio_forgotten(ratios)}
    if reference is not None:
        found["forget_quality"] = forget_quality(ratios, reference).p_value
    return found


def _membership(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> dict[str, float]:
    """AUC of each attack between the forget statements and the same statements with false answers.

    Texts of the same form that the model has not been trained on: 0.5 where nothing tells the true ones apart.
    """
    from zerounlearn.evaluation.membership import auc, loss, min_k, min_k_plus_plus, zlib_ratio

    texts = (
        [Query(q.prompt, q.answer).text for q in questions],
        [Query(q.prompt, a).text for q in questions for a in q.perturbed],
    )
    tokens = iter(text_tokens(model, tokenizer, [*texts[0], *texts[1]]))
    scored: list[dict[str, list[float]]] = []
    for side in texts:
        scores: dict[str, list[float]] = {name: [] for name in _MIA}
        for text in side:
            found: AnswerTokens = next(tokens)
            scores["mia_loss"].append(loss(found.log_p))
            scores["mia_min_k"].append(min_k(found.log_p))
            scores["mia_min_k_pp"].append(min_k_plus_plus(found))
            scores["mia_zlib"].append(zlib_ratio(found.log_p, text))
        scored.append(scores)
    return {name: auc(scored[0][name], scored[1][name]) for name in _MIA}


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material, wanted: Set[str]
) -> dict[str, float]:
    """Fluency and consistency, those that are wanted.

    Fluency is the mean weighted n-gram entropy, in bits, of the openings gone on from; of the forget prompts without
    any. Consistency is the mean similarity of what follows a forget prompt to the draw's statements on its subject.
    """
    from zerounlearn.evaluation.fluency import consistency, n_gram_entropy

    found: dict[str, float] = {}
    prompts = [fact.request.prompt for fact in material.facts]
    after: list[str] = []
    if "consistency" in wanted or ("fluency" in wanted and not material.openings):
        after = generate(model, tokenizer, prompts, tokens=_FLUENCY_TOKENS)
    if "fluency" in wanted:
        openings = material.openings
        texts = generate(model, tokenizer, openings, tokens=_FLUENCY_TOKENS) if openings else after
        found["fluency"] = statistics.fmean(map(n_gram_entropy, texts))
    if "consistency" in wanted:
        statements = [_statements(fact) for fact in material.facts]
        corpus = [text for texts in statements for text in texts]
        found["consistency"] = statistics.fmean(
            consistency(text, texts, corpus) for text, texts in zip(after, statements, strict=True)
        )
    return found


def _statements(fact: Fact) -> list[str]:
    """What the draw knows of the fact's subject, as sentences."""
    asked = [(prompt, fact.request.answer) for prompt in (fact.request.prompt, *fact.paraphrases)]
    return [Query(*pair).text for pair in (*asked, *fact.others)]


def _utility(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: Mapping[str, Sequence[Question]],
    tokens: int,
) -> float:
    """TOFU's harmonic mean of probability, ROUGE-L recall and truth ratio over the parts."""
    from zerounlearn.evaluation.tofu import ask
    from zerounlearn.evaluation.truth import model_utility, truth_ratio_known

    numbers: dict[str, float] = {}
    for name, questions in parts.items():
        rows = ask(model, tokenizer, questions, options=name in _CHOICES, tokens=tokens)
        numbers[f"{name} probability"] = statistics.fmean(row.probability for row in rows)
        numbers[f"{name} rouge"] = statistics.fmean(row.rouge for row in rows)
        numbers[f"{name} truth ratio"] = truth_ratio_known([row.truth_ratio for row in rows])
    return model_utility(numbers)
