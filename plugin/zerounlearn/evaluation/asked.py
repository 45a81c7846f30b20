"""What metrics are taken from: a model, a draw, and what the model gave when it was asked, each prompt once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.entry import MultiHop, Question
from zerounlearn.data.fact import Fact
from zerounlearn.evaluation.probes import Probes
from zerounlearn.model.answers import AnswerTokens, Score, answer_tokens, resolve_joints, text_tokens
from zerounlearn.model.generate import generate
from zerounlearn.model.tokens import Queries, Query

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Settings:
    """What a study sets for its metrics.

    Attributes:
        generation_tokens: tokens generated for ROUGE-L.
        held_out: ordinary texts, for `ppl`; none takes no perplexity.
        held_out_tokens: how much of them is read.
        paper_text: the texts that `ppl_paper` reads the beginning of, as the paper does.
    """

    generation_tokens: int = 30
    held_out: Sequence[str] = ()
    held_out_tokens: int = 4096
    paper_text: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """A model and a draw, as metrics see them.

    Answers and texts are kept, so that a prompt that several metrics need is run once.

    Attributes:
        model: any causal language model, left as it was.
        tokenizer: its tokenizer.
        probes: the prompts behind Eff, Gen and the specificities.
        facts: what is forgotten.
        token_by_token: queries whose specificity is next-token accuracy, as ZsRE's is.
        questions: the forget prompts that come with false answers.
        openings: texts to go on from.
        utility: questions by part, for model utility.
        multi_hop: questions that take several of the facts.
        kept: facts that are not forgotten, those shown to the method first.
        same_answer: facts that no method is shown, about other subjects, whose answer is one of those forgotten.
        reference: truth ratios of a model that never saw the forget set, on the same questions.
        settings: of the study.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    probes: Probes
    facts: Sequence[Fact] = ()
    token_by_token: Queries = ()
    questions: Sequence[Question] = ()
    openings: Sequence[str] = ()
    utility: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    multi_hop: Sequence[MultiHop] = ()
    kept: Sequence[Fact] = ()
    same_answer: Queries = ()
    reference: Sequence[float] | None = None
    settings: Settings = Settings()
    _answers: dict[Query, AnswerTokens] = field(default_factory=dict, repr=False)
    _statements: dict[str, AnswerTokens] = field(default_factory=dict, repr=False)
    _texts: dict[tuple[str, int], str] = field(default_factory=dict, repr=False)

    def answers(self, queries: Queries) -> list[AnswerTokens]:
        """What the model gives each token of the answers, teacher-forced, in the queries' order."""
        asked = [Query(*query) for query in queries]
        return _filled(self._answers, asked, lambda new: answer_tokens(self.model, self.tokenizer, new))

    def joined(self, queries: Queries) -> list[Query]:
        """The queries with what stands between prompt and answer; see `resolve_joints`."""
        return resolve_joints(self.model, self.tokenizer, queries)

    def scores(self, queries: Queries) -> list[Score]:
        """Whether each answer is said, and its probability."""
        return [Score.of(tokens) for tokens in self.answers(queries)]

    def statements(self, texts: Sequence[str]) -> list[AnswerTokens]:
        """Tokens of whole texts, with the moments of their log-probabilities; for membership inference."""
        return _filled(self._statements, texts, lambda new: text_tokens(self.model, self.tokenizer, new))

    def texts(self, prompts: Sequence[str], tokens: int) -> list[str]:
        """Greedy continuations of at most `tokens` tokens."""
        keys = [(prompt, tokens) for prompt in prompts]
        return _filled(
            self._texts,
            keys,
            lambda new: generate(self.model, self.tokenizer, [prompt for prompt, _ in new], tokens=tokens),
        )


def _filled(known: dict[K, V], keys: Sequence[K], ask: Callable[[list[K]], list[V]]) -> list[V]:
    """The keys' values, of which those that are not known yet are asked for together."""
    new = [key for key in dict.fromkeys(keys) if key not in known]
    if new:
        known |= zip(new, ask(new), strict=True)
    return [known[key] for key in keys]
