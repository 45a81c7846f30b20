"""What taking a statistic reads of a run's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zerounlearn.errors import ConfigError
from zerounlearn.statistics.files import check_stats_dir

_MOST = 2**63 - 1  # what a stored count can hold


class TakesStatistics(Protocol):
    """Any configuration that names these fields; their meaning is `StatisticsConfig`'s."""

    @property
    def layers(self) -> Sequence[int]: ...
    @property
    def mom2_n_samples(self) -> int: ...
    @property
    def mom2_dtype(self) -> str: ...
    @property
    def stats_dir(self) -> str: ...
    @property
    def stats_max_length(self) -> int: ...
    @property
    def stats_batch_tokens(self) -> int | None: ...


@dataclass(frozen=True)
class StatisticsConfig:
    """The fields themselves, by EasyEdit's names where it has them.

    Attributes:
        layers: whose keys are collected.
        mom2_dataset: the corpus: 'wikipedia', 'wikitext', 'embedded', or a file.
        mom2_n_samples: texts to take the second moment over.
        mom2_dtype: 'float32' or 'float64', of the products and of the stored statistic.
        stats_dir: where statistics are cached.
        stats_max_length: longer texts are cut to this many tokens.
        stats_batch_tokens: tokens a forward pass; by the free memory where it is None.
        mom2_adjustment: whether the statistic takes part at all.
    """

    layers: Sequence[int]
    mom2_dataset: str = "wikipedia"
    mom2_n_samples: int = 100_000
    mom2_dtype: str = "float32"
    stats_dir: str = "./data/stats"
    stats_max_length: int = 512
    stats_batch_tokens: int | None = None
    mom2_adjustment: bool = True


def check_statistics(config: TakesStatistics) -> None:
    """Refuse what no statistic can be taken, stored or looked for with; needs no model.

    Raises:
        ConfigError: naming the field, its value and what it may be.
    """
    if not config.layers:
        raise ConfigError("layers=[]: expected at least one layer to take statistics of")
    if config.mom2_dtype not in ("float32", "float64"):
        raise ConfigError(f"mom2_dtype={config.mom2_dtype!r}: expected 'float32' or 'float64'")
    if not 1 <= config.mom2_n_samples <= _MOST:
        raise ConfigError(f"mom2_n_samples={config.mom2_n_samples:.6g}: expected 1 to 2^63 - 1 texts")
    if config.stats_max_length < 1:
        raise ConfigError(f"stats_max_length={config.stats_max_length}: expected at least 1 token")
    check_stats_dir(config.stats_dir)
