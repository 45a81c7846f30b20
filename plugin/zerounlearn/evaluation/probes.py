"""What an unlearned model is asked: the forget set in its own and in other words, and all that has to stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.model.answers import score

Items = tuple[tuple[str, str], ...]
"""(prompt, answer) pairs."""

Verdict = tuple[bool, float]
"""Whether the answer is said, all its tokens arg-max under teacher forcing, and its probability."""


@dataclass(frozen=True)
class Probes:
    """(prompt, answer) pairs by metric; each share is of pairs whose answer is said, all its tokens arg-max.

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
    def of(
        cls, facts: Sequence[Fact], *, retain: Iterable[Request] = (), unrelated: Iterable[tuple[str, str]] = ()
    ) -> Probes:
        """Every prompt once; one that is itself to be forgotten is in none of the specificities.

        Args:
            facts: the forget set with the prompts that measure it.
            retain: facts that the method is shown; they are left out of `spe_relation` and `spe_subject`.
            unrelated: facts to be kept that have nothing to do with the forget set.
        """
        forgotten = {f.request.prompt for f in facts}
        shown = {r.prompt for r in retain}

        def kept(items: Iterable[tuple[str, str]], hidden: Iterable[str] = ()) -> Items:
            return tuple(dict.fromkeys(item for item in items if item[0] not in forgotten | set(hidden)))

        neighbours = [item for f in facts for item in f.neighbours]
        return cls(
            eff=tuple((f.request.prompt, f.request.answer) for f in facts),
            gen=tuple(dict.fromkeys((p, f.request.answer) for f in facts for p in f.paraphrases)),
            spe=kept(neighbours),
            spe_relation=kept(neighbours, shown),
            spe_subject=kept((item for f in facts for item in f.others), shown),
            spe_unrelated=kept(unrelated, shown),
        )

    def items(self) -> list[tuple[str, str]]:
        """Every pair once."""
        return list(dict.fromkeys(item for _, part in self._parts() for item in part))

    def means(self, verdicts: Mapping[tuple[str, str], Verdict]) -> dict[str, float]:
        """Shares in [0, 1] by name, and `{name}_probability`, the answers' mean; nothing for an empty part."""
        found: dict[str, float] = {}
        for name, items in self._parts():
            if items:
                found[name] = sum(verdicts[item][0] for item in items) / len(items)
                found[f"{name}_probability"] = sum(verdicts[item][1] for item in items) / len(items)
        return found

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """`means` of a model as it is."""
        return self.means(self._verdicts(model, tokenizer))

    def known(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Probes:
        """The same without what the model does not say anyway; forget prompts and paraphrases stay."""
        verdicts = self._verdicts(model, tokenizer)
        sure = {name: tuple(i for i in items if verdicts[i][0]) for name, items in self._parts() if name[:3] == "spe"}
        return Probes(self.eff, self.gen, **sure)

    def _parts(self) -> list[tuple[str, Items]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]

    def _verdicts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[tuple[str, str], Verdict]:
        items = self.items()
        return {item: (s.said, s.probability) for item, s in zip(items, score(model, tokenizer, items), strict=True)}
