"""Which layers to edit, and at which token, where a run leaves that open: found on the model before any edit.

Updates of keys go by the separability map of packaged development facts that the model says. A forget set's own
paraphrases and neighbours measure its edit, so they have no part in the choice.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.corpora import open_corpus
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import Fact
from zerounlearn.data.known import known_entries
from zerounlearn.data.sets.embedded import load_embedded
from zerounlearn.errors import ConfigError
from zerounlearn.method.zerounlearn.separability import PLACES, Suggestion, separability

if TYPE_CHECKING:
    from zerounlearn.method.zerounlearn.config import LocatedEdit

    Run = TypeVar("Run", bound=LocatedEdit)

log = logging.getLogger(__name__)

# Facts that the map is of, the fewest that will do, and how many are asked for at a time.
_FACTS, _FEWEST, _ASKED = 12, 4, 24
_TEXT_TOKENS = 1024
# The layers that were chosen by hand on SmolLM2's 30: (first, how many) for updates of outputs, and of keys.
_BY_HAND, _DEPTH = {"outputs": (17, 3), "keys": (23, 5)}, 30


def located(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Run:
    """The run with its layers named; one that names them is returned as it is.

    An update of keys gets the layers that the map suggests and, unless `fact_token` is set explicitly, its place; any
    other, or a model that says too few of the packaged facts, those at the depth of what was chosen on SmolLM2.

    Args:
        run: a configuration.
        model: a decoder, left as it was.
        tokenizer: the model's.

    Raises:
        ConfigError: `v_loss_layer` lies below what was found, or `fact_token` is no place on the map.
        ZeroUnlearnError: the layers are not found, or the corpus cannot be had.
    """
    if run.layers:
        return run
    found = _by_map(run, model, tokenizer) if run.form == "keys" else None
    depth = int(model.config.get_text_config().num_hidden_layers)
    chosen = run.replace(layers=found.layers, fact_token=found.fact_token) if found else _by_depth(run, depth)
    log.info("layers %s at %s, found on the model", chosen.layers, chosen.fact_token)
    if chosen.v_loss_layer is not None and chosen.v_loss_layer < chosen.layers[-1]:
        raise ConfigError(
            f"v_loss_layer={chosen.v_loss_layer}: the loss is read at or above the last edited layer, which is "
            f"found to be {chosen.layers[-1]}: leave v_loss_layer out, or set layers"
        )
    return chosen


def _by_depth(run: Run, depth: int) -> Run:
    first, count = _BY_HAND["keys" if run.form == "keys" else "outputs"]
    count = min(count, depth)
    start = min(round(first / _DEPTH * depth), depth - count)
    return run.replace(layers=list(range(start, start + count)))


def _by_map(run: LocatedEdit, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Suggestion | None:
    places = (run.fact_token,) if "fact_token" in run.explicit else PLACES
    if not set(places) <= set(PLACES):
        raise ConfigError(f"fact_token={run.fact_token!r}: layers are found for {', '.join(PLACES)} alone: set layers")
    facts = _facts(model, tokenizer)
    if len(facts) < _FEWEST:
        log.warning("the model says %d packaged facts, too few to find layers by: they are taken by depth", len(facts))
        return None
    texts = open_corpus(run.mom2_dataset).texts()
    found = separability(model, tokenizer, facts, run, texts=texts, text_tokens=_TEXT_TOKENS, places=places)
    return found.suggestion(_BY_HAND["keys"][1])


def _facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Fact]:
    """The first packaged development facts that the model says, of relations in turn."""
    found: list[Fact] = []
    entries = _in_turn(load_embedded("development"))
    while len(found) < _FACTS and (batch := list(itertools.islice(entries, _ASKED))):
        found += [entry.fact for entry in known_entries(model, tokenizer, batch)]
    return found[:_FACTS]


def _in_turn(entries: Sequence[Entry]) -> Iterator[Entry]:
    topics: dict[str | None, list[Entry]] = {}
    for entry in entries:
        topics.setdefault(entry.topic, []).append(entry)
    rounds = itertools.zip_longest(*topics.values())
    return (entry for one in rounds for entry in one if entry is not None)
