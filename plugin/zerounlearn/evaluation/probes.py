"""What an unlearned model is asked: the forget set in its own and in other words, and all that has to stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.evaluation.memorisation import exact_memorisation, probability
from zerounlearn.evaluation.registry import Column, Goal, Group, Measure, Metric, metric, metrics, probability_of
from zerounlearn.model.answers import Score, resolve_joints, score
from zerounlearn.model.tokens import Queries, Query

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

Items = tuple[Query, ...]
"""Prompts with their answers."""

ENOUGH = 0.5
"""Share of the forget prompts that a model should answer before it forgets: with less, there is little to forget."""


@dataclass(frozen=True)
class Known:
    """How many prompts a metric asks, and how many of them the base model answers."""

    asked: int
    said: int

    @property
    def share(self) -> float:
        """Of the prompts that the base model answers."""
        return self.said / self.asked


@dataclass(frozen=True)
class Probes:
    """Queries by metric; each share is of those whose answer is said, all its tokens arg-max under teacher forcing.

    Attributes:
        eff: the forget prompts with their sensitive answers, ↓.
        gen: their paraphrases, ↓.
        spe: neighbourhood prompts with what must be kept, as in the paper, ↑.
        spe_relation: those of them that no retain set holds, ↑: what is kept without having been shown.
        spe_subject: other facts about the same subjects, ↑.
        spe_unrelated: facts that have neither relation nor subject in common with the forget set, ↑.
    """

    eff: Items
    gen: Items = ()
    spe: Items = ()
    spe_relation: Items = ()
    spe_subject: Items = ()
    spe_unrelated: Items = ()

    @classmethod
    def of(cls, facts: Sequence[Fact], *, retain: Iterable[Request] = (), unrelated: Queries = ()) -> Probes:
        """Every prompt once; one that is itself to be forgotten is in none of the specificities.

        Args:
            facts: the forget set with the prompts that measure it.
            retain: facts that the method is shown; they are left out of `spe_relation` and `spe_subject`.
            unrelated: facts to be kept that have nothing to do with the forget set.
        """
        forgotten = {f.request.prompt for f in facts}
        shown = {r.prompt for r in retain}

        def kept(items: Iterable[Query | tuple[str, str]], hidden: Iterable[str] = ()) -> Items:
            queries = (Query(*item) for item in items)
            return tuple(dict.fromkeys(query for query in queries if query.prompt not in forgotten | set(hidden)))

        neighbours = [item for f in facts for item in f.neighbours]
        return cls(
            eff=tuple(f.request.query for f in facts),
            gen=tuple(dict.fromkeys(query for f in facts for query in paraphrases(f))),
            spe=kept(neighbours),
            spe_relation=kept(neighbours, shown),
            spe_subject=kept((item for f in facts for item in f.others), shown),
            spe_unrelated=kept(unrelated, shown),
        )

    def items(self) -> list[Query]:
        """Every query once."""
        return list(dict.fromkeys(query for part in self.parts().values() for query in part))

    def parts(self) -> dict[str, Items]:
        """The queries by metric."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def resolved(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Probes:
        """The same, with what stands between prompt and answer found by the model before it is edited."""
        items = self.items()
        joined = dict(zip(items, resolve_joints(model, tokenizer, items), strict=True))
        return Probes(**{name: tuple(joined[query] for query in part) for name, part in self.parts().items()})

    def means(self, verdicts: Mapping[Query, Score]) -> dict[str, float]:
        """Shares in [0, 1] by name, and `{name}_probability`, the answers' mean; nothing for an empty part."""
        means: dict[str, float] = {}
        for name, part in self.parts().items():
            if part:
                means[name] = fmean(verdicts[query].said for query in part)
                means[f"{name}_probability"] = fmean(verdicts[query].probability for query in part)
        return means

    def known(self, verdicts: Mapping[Query, Score]) -> dict[str, Known]:
        """How many queries of each part that is not empty the base model answers, by its own verdicts."""
        return {
            name: Known(len(part), sum(verdicts[query].said for query in part))
            for name, part in self.parts().items()
            if part
        }

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """`means` of a model as it is."""
        return self.means(self.verdicts(model, tokenizer))

    def only_known(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Probes:
        """The same without what the model does not say anyway; forget prompts and paraphrases stay."""
        verdicts = self.verdicts(model, tokenizer)
        sure = {name: tuple(q for q in part if verdicts[q].said) for name, part in self.parts().items()}
        return Probes(**{**sure, "eff": self.eff, "gen": self.gen})

    def verdicts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Query, Score]:
        """Whether each query's answer is said, and its probability."""
        items = self.items()
        return dict(zip(items, score(model, tokenizer, items), strict=True))


def paraphrases(fact: Fact) -> list[Query]:
    """The fact's paraphrases with its sensitive answer."""
    return [Query(prompt, fact.request.answer, fact.request.joint) for prompt in fact.paraphrases]


def unknown_warning(known: Mapping[str, Known]) -> str | None:
    """What to tell where the base model says less than half of what it is to forget, else None.

    Args:
        known: of `Probes.known`, on the model before it forgets.
    """
    eff = known.get("eff")
    if eff is None or eff.share >= ENOUGH:
        return None
    return (
        f"the model says {eff.said} of the {eff.asked} answers that it is to forget before it forgets anything: the "
        "others count as forgotten without having been known; check how prompt and answer join (joint, chat), and "
        "forget what the model knows"
    )


def _share(part: str) -> Measure:
    def measure(asked: Asked) -> float | None:
        queries = getattr(asked.probes, part)
        return fmean(scored.said for scored in asked.scores(queries)) if queries else None

    return measure


def _mean_probability(part: str) -> Measure:
    def measure(asked: Asked) -> float | None:
        queries = getattr(asked.probes, part)
        return fmean(scored.probability for scored in asked.scores(queries)) if queries else None

    return measure


def _token_by_token(part: str) -> tuple[Measure, Measure]:
    """Share of the answers' tokens that are the arg-max, and their mean probability; ZsRE is measured so."""

    def queries(asked: Asked) -> Queries:
        return asked.token_by_token if part == "spe" else getattr(asked.probes, part)

    def accuracy(asked: Asked) -> float | None:
        if not asked.token_by_token:
            return _share(part)(asked)
        answers = asked.answers(queries(asked))
        return fmean(exact_memorisation(tokens.hit) for tokens in answers) if answers else None

    def mean(asked: Asked) -> float | None:
        if not asked.token_by_token:
            return _mean_probability(part)(asked)
        answers = asked.answers(queries(asked))
        return fmean(probability(tokens.log_p) for tokens in answers) if answers else None

    return accuracy, mean


_PARTS = {
    "eff": ("Eff.", Goal.LOWER, "Forget prompts that still give the sensitive answer."),
    "gen": ("Gen.", Goal.LOWER, "Paraphrases that still give the sensitive answer; of ZsRE their tokens that do."),
    "spe": ("Spe.", Goal.HIGHER, "Neighbourhood prompts that must be kept and are."),
    "spe_relation": ("Spe. relation", Goal.HIGHER, "Other subjects' answers in the same relation."),
    "spe_subject": ("Spe. subject", Goal.HIGHER, "Other facts about the same subject."),
    "spe_unrelated": ("Spe. unrelated", Goal.HIGHER, "Facts that share neither."),
}
"""Label, direction and meaning of each part of the probes."""


@metric("kept", label="Kept", goal=Goal.HIGHER, unit="%", group=Group.CORE, source="arXiv 2605.18879")
def _kept(asked: Asked) -> float | None:
    """Prompts of up to 1,000 facts that were to be kept, the retain set among them, that still give their answer."""
    queries = [fact.request.query for fact in asked.kept]
    return fmean(scored.said for scored in asked.scores(asked.joined(queries))) if queries else None


@metric("kept_paraphrases", label="Kept, reworded", goal=Goal.HIGHER, unit="%", group=Group.CORE)
def _kept_paraphrases(asked: Asked) -> float | None:
    """Paraphrases of the facts behind `kept` that still give their answer."""
    queries = [query for fact in asked.kept for query in paraphrases(fact)]
    return fmean(scored.said for scored in asked.scores(asked.joined(queries))) if queries else None


@metric("spe_answer", label="Spe. answer", goal=Goal.HIGHER, unit="%", group=Group.CORE)
def _spe_answer(asked: Asked) -> float | None:
    """Facts that no method is shown, about other subjects, whose answer is one of those forgotten."""
    scores = asked.scores(asked.joined(asked.same_answer))
    return fmean(scored.said for scored in scores) if scores else None


for _name, (_label, _goal, _meaning) in _PARTS.items():
    _column = Column(_name, _label, _goal, Group.CORE, _meaning, "%", 100.0, 1)
    _measures = _token_by_token(_name) if _name in ("gen", "spe") else (_share(_name), _mean_probability(_name))
    for _shown, _measure in zip((_column, probability_of(_column)), _measures, strict=True):
        metrics.add(
            _shown.metric, Metric(_shown, _measure, always=True), summary=_shown.meaning, source="arXiv 2605.18879"
        )
