"""`ZeroUnlearnEditor`: EasyEdit's editor with `.unlearn`, which forgets a set, measures it and reports."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from zerounlearn.data.corpora import check_corpus, open_corpus
from zerounlearn.data.fact import Fact, load_forget_set
from zerounlearn.data.request import Request
from zerounlearn.data.retain import check_retain_set, retain_set
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import ConfigError
from zerounlearn.evaluate.perplexity import perplexity
from zerounlearn.evaluate.probes import Probes
from zerounlearn.methods.zerounlearn.config import ZeroUnlearn
from zerounlearn.methods.zerounlearn.method import layout_of, unlearn
from zerounlearn.model.answers import score
from zerounlearn.model.fingerprint import fingerprints
from zerounlearn.model.generate import generate
from zerounlearn.model.lineage import Lineage
from zerounlearn.report.run import FactReport, Measured, Phase, Report, environment

log = logging.getLogger(__name__)

_editor: Any = importlib.import_module(f"{framework().module.__name__}.editors.editor")

# The substrings by which each edition's BaseEditor picks a loader for decoders.
DISPATCH = {
    "wheel": ("gpt", "llama", "baichuan", "chatglm", "internlm"),
    "checkout": ("gpt", "llama", "baichuan", "chatglm", "internlm", "qwen", "mistral"),
}


def check_dispatch(model_name: str) -> None:
    """Refuse a name for which EasyEdit has no loader, before anything is loaded.

    Raises:
        ConfigError: naming what a name must contain and the ways out.
    """
    known = DISPATCH[framework().edition]
    if not any(part in model_name.lower() for part in known):
        raise ConfigError(
            f"model_name={model_name!r}: EasyEdit picks its loader by name and knows {', '.join(known)}: put the "
            "checkpoint into a folder whose name contains one of them, or pass a (model, tokenizer) pair"
        )


class ZeroUnlearnEditor(_editor.BaseEditor):
    """EasyEdit's `BaseEditor`, with unlearning as one call.

    `edit` and `batch_edit` are the framework's own. The model is in `self.model`, the tokenizer in `self.tok`.
    """

    hparams: ZeroUnlearn
    model: PreTrainedModel

    def __init__(self, hparams: ZeroUnlearn) -> None:
        if hparams.mom2_adjustment:
            check_corpus(hparams.mom2_dataset)
        if isinstance(hparams.model_name, str):
            check_dispatch(hparams.model_name)
        check_retain_set(hparams.retain_set)
        super().__init__(hparams)

    def unlearn(
        self,
        requests: str | Path | Iterable[Mapping[str, Any] | Fact],
        *,
        retain: Sequence[Request] | None = None,
        unrelated: Sequence[tuple[str, str]] = (),
        held_out: Sequence[str] | None = None,
        held_out_tokens: int = 4096,
    ) -> tuple[Report, PreTrainedModel]:
        """Forget a set of facts and report what it did.

        Args:
            requests: a path to jsonl/json/yaml/csv or the records themselves; see `load_forget_set`.
            retain: facts to keep, whose keys join ordinary text's with weight `retain_KKT_lam`; by default what
                `hparams.retain_set` stands for.
            unrelated: (prompt, answer) pairs that have nothing to do with the forget set, to be measured.
            held_out: ordinary text for perplexity; by default the embedded extract's held-out part where the
                corpus is `embedded`, else none.
            held_out_tokens: how much of it is read.

        Returns:
            The report and the model, edited in place (it is `self.model`).

        Raises:
            ZeroUnlearnError: with the weights as they were.
        """
        facts = load_forget_set(requests)
        if held_out is None and self.hparams.mom2_dataset == "embedded":
            from zerounlearn.demo.wikipedia import embedded_held_out_texts

            held_out = embedded_held_out_texts()
        forgotten = [fact.request for fact in facts]
        layout = layout_of(self.model, self.hparams)
        if retain is None:
            measured = Probes.of(facts, unrelated=unrelated).items()
            hp = self.hparams
            retain = retain_set(
                self.model, self.tok, forgotten, hp.retain_set, held_out=[p for p, _ in measured], seed=hp.seed
            )
        probes = Probes.of(facts, retain=retain, unrelated=unrelated)
        prints = {f"weights below layer {i}": p for i, p in fingerprints(layout, self.hparams.layers).items()}
        seconds = {"evaluation": -time.perf_counter()}
        before, all_before = self._measure(facts, probes, held_out, held_out_tokens, "before")
        seconds["evaluation"] += time.perf_counter()
        with layout.restored(self.hparams.layers):  # if the evaluation fails
            outcome = unlearn(
                self.model,
                self.tok,
                forgotten,
                self.hparams,
                open_corpus(self.hparams.mom2_dataset) if self.hparams.mom2_adjustment else None,
                retain=retain,
            )
            seconds |= outcome.seconds
            start = time.perf_counter()
            after, all_after = self._measure(facts, probes, held_out, held_out_tokens, "after")
            seconds["evaluation"] += time.perf_counter() - start
        report = Report(
            facts=[FactReport.of(fact, b, a) for fact, b, a in zip(facts, before, after, strict=True)],
            before=all_before,
            after=all_after,
            layers=outcome.layers,
            seconds=seconds,
            prefixes=outcome.vectors.prefixes if outcome.vectors else [],
            retained=len(retain),
            z_loss=outcome.z_loss,
            sensitive_loss=outcome.sensitive_loss,
            hparams=self.hparams.to_dict(),
            fingerprints=prints | outcome.statistics,
            environment=environment(self.model) | {"easyedit": framework().edition},
        )
        return report, self.model

    def save(self, folder: str | Path, report: Report | None = None) -> None:
        """Write the model, its own tokenizer, the report, and what later runs must know of what it has forgotten.

        Args:
            folder: `from_pretrained` reads it; it may exist.
            report: of `unlearn`.

        Raises:
            OutputError: it cannot be written.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        # The editor's own tokenizer has had its padding changed by the framework.
        name = self.model.config._name_or_path
        (AutoTokenizer.from_pretrained(name) if name else self.tok).save_pretrained(folder)
        Lineage.of(self.model).save(folder)
        if report is not None:
            report.save(folder)

    def _measure(
        self, facts: Sequence[Fact], probes: Probes, held_out: Sequence[str] | None, tokens: int, phase: str
    ) -> tuple[list[Measured], Phase]:
        """Whether each prompt's answer is said, as EasyEdit's metric counts it, its probability, and perplexity."""
        own = [(p, f.request.answer) for f in facts for p in (f.request.prompt, *f.paraphrases)]
        others = [pair for f in facts for pair in (*f.neighbours, *f.others)]
        pairs = list(dict.fromkeys([*own, *others, *probes.items()]))
        log.info("evaluation %s: %d prompts", phase, len(pairs))
        scores = score(self.model, self.tok, pairs)
        verdicts = {pair: (s.said, s.probability) for pair, s in zip(pairs, scores, strict=True)}
        texts = generate(self.model, self.tok, [f.request.prompt for f in facts], tokens=8, special=True)
        measured = [
            Measured(
                verdicts[fact.request.prompt, fact.request.answer],
                [verdicts[p, fact.request.answer] for p in fact.paraphrases],
                [verdicts[pair] for pair in fact.neighbours],
                [verdicts[pair] for pair in fact.others],
                text,
            )
            for fact, text in zip(facts, texts, strict=True)
        ]
        ppl = perplexity(self.model, self.tok, held_out, tokens=tokens) if held_out else None
        return measured, Phase(**probes.means(verdicts), ppl=ppl)
