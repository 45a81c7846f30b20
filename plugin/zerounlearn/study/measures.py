"""The numbers of one model on one draw, under the names that a study's outputs know."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.audit.disruption import at_disruption
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.registry import chosen
from zerounlearn.audit.target import Outcome
from zerounlearn.data.corpora import held_out_corpus
from zerounlearn.errors import AuditError, ZeroUnlearnError
from zerounlearn.evaluation.asked import Asked, Settings
from zerounlearn.evaluation.multi_hop import hop_queries
from zerounlearn.evaluation.perplexity import PAPER_TEXTS
from zerounlearn.evaluation.probes import paraphrases
from zerounlearn.evaluation.registry import take
from zerounlearn.method.edit import Edit
from zerounlearn.model.answers import resolve_joints
from zerounlearn.study.material import Material
from zerounlearn.study.spec import Study

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measures:
    """All that a study measures: the registered metrics that it names, those always taken, and standard tasks."""

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
        audit = {"audit": asdict(s.audit)} if s.audit is not None else {}
        return settings | {"generation_tokens": s.generation_tokens} | audit

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
    def _settings(self) -> Settings:
        held_out = self.study.held_out
        return Settings(
            generation_tokens=self.study.generation_tokens,
            # A text has one token at least, but for empty ones; a corpus may hold millions.
            held_out=_beginning(held_out.text, 1 + held_out.tokens),
            held_out_tokens=held_out.tokens,
            paper_text=_beginning(held_out.paper, PAPER_TEXTS),
        )

    def asked(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        material: Material,
        reference: Sequence[float] | None = None,
    ) -> Asked:
        """The model and the draw, as metrics see them."""
        return Asked(
            model,
            tokenizer,
            material.probes,
            facts=material.facts,
            token_by_token=material.token_by_token,
            questions=material.questions,
            openings=material.openings,
            utility=material.utility,
            multi_hop=material.multi_hop,
            kept=material.kept,
            same_answer=material.same_answer,
            reference=reference,
            settings=self._settings,
        )

    def take(self, asked: Asked) -> dict[str, float]:
        """All numbers by name; a metric that the draw has nothing for is absent."""
        return take(asked, self.study.metrics) | self._tasks(asked.model, asked.tokenizer)

    def audit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        material: Material,
        edit: Edit,
        seed: int,
        ceilings: dict[str, list[Outcome]],
    ) -> dict[str, float]:
        """What attacks bring back, as `audit/<attack>`: the excess of its strongest variant over the controls.

        Variants that tell of something beside the answer have no part in it.

        `audit/any` is the share of facts that any attack brings back, `audit/kl` the distance from the base model on
        ordinary text in nats a token, `audit/holes` the share of questions beside the facts that were lost. Nothing for
        an edit that wraps modules, or where the base model says no fact. `ceilings` are those of the draw, see
        `audit_pair`.
        """
        spec = self.study.audit
        if spec is None or edit.undo is not None:
            return {}
        from zerounlearn.audit.run import audit_pair  # which needs the packages of the extra `audit`

        texts = self._settings.held_out or None
        pair = Pair.of(model, edit)
        wanted = chosen(spec.attacks, without=spec.without)
        scaled = at_disruption(pair, tokenizer, texts or (), spec.disruption) if spec.disruption else nullcontext()
        try:
            with scaled:
                found = audit_pair(
                    pair,
                    tokenizer,
                    material.facts,
                    budget=spec.budget,
                    wanted=wanted,
                    controls=spec.controls,
                    seed=seed,
                    text=texts,
                    ceilings=ceilings,
                )
        except AuditError as error:
            log.warning("no audit: %s", error)
            return {}
        numbers = {
            f"audit/{each.attack}": max(0.0, *(v.excess for v in each.variants if not v.edited.beside))
            for each in found.attacked
        }
        numbers["audit/any"] = fmean(bool(found.against(i)) for i in range(len(found.facts)))
        if found.holes is not None and found.holes.asked:
            numbers["audit/holes"] = found.holes.lost / found.holes.asked
        return numbers if found.disruption is None else numbers | {"audit/kl": found.disruption}

    def _tasks(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        chosen = self.study.lm_eval
        if not chosen.tasks:
            return {}
        from zerounlearn.evaluation.harness import standard_tasks

        results = standard_tasks(model, tokenizer, chosen.tasks, limit=chosen.limit, folder=self._task_folder)
        return {f"lm_eval/{task}/{name}": value for task, row in results.items() for name, value in row.items()}


def said(asked: Asked) -> list[dict[str, Any]]:
    """For each fact whether its sensitive answer is said, and its probability, and what the model writes instead.

    Its paraphrases have the first two, too.
    """
    own = asked.scores(asked.probes.eff)
    texts = asked.texts([query.prompt for query in asked.probes.eff], asked.settings.generation_tokens)
    joined = {(query.prompt, query.answer): query for query in asked.probes.gen}
    reworded = [[joined[q.prompt, q.answer] for q in paraphrases(fact)] for fact in asked.facts]
    return [
        {
            **asdict(score),
            "completion": text,
            "paraphrases": [
                {"prompt": query.prompt, **asdict(other)}
                for query, other in zip(queries, asked.scores(queries), strict=True)
            ],
        }
        for score, text, queries in zip(own, texts, reworded, strict=True)
    ]


def known(asked: Asked) -> dict[str, dict[str, int]]:
    """How many prompts Eff, Gen and the specificities ask, and how many of them the base model answers."""
    scores = dict(zip(queries := asked.probes.items(), asked.scores(queries), strict=True))
    return {name: asdict(count) for name, count in asked.probes.known(scores).items()}


def resolved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material) -> Material:
    """The draw with what stands between prompts and answers found by the base model, once, for all that follows."""
    # What the metrics find for these is then kept with the model.
    later = [query for case in hop_queries(material.multi_hop) for query in case]
    later += [query for fact in material.kept for query in (fact.request.query, *paraphrases(fact))]
    resolve_joints(model, tokenizer, later)
    requests = (*material.requests, *material.retain)
    joined = iter(resolve_joints(model, tokenizer, [request.query for request in requests]))
    forget = [replace(fact, request=replace(fact.request, joint=next(joined).joint)) for fact in material.facts]
    return replace(
        material,
        facts=tuple(forget),
        retain=tuple(replace(request, joint=next(joined).joint) for request in material.retain),
        probes=material.probes.resolved(model, tokenizer),
        token_by_token=tuple(resolve_joints(model, tokenizer, material.token_by_token)),
    )


def _beginning(name: str | None, count: int) -> list[str]:
    """The first texts of a corpus that are not empty."""
    if name is None:
        return []
    return list(islice((text for text in held_out_corpus(name).texts() if text.strip()), count))
