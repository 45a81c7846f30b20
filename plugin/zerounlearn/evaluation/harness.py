"""Standard tasks (MMLU, HellaSwag, …) on a model in memory, by lm-evaluation-harness (Gao et al. 2021)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.errors import ConfigError, FrameworkError, did_you_mean
from zerounlearn.model.hooks import frozen


def check_tasks(tasks: Sequence[str], folder: Path | None = None) -> Any:
    """The harness's manager of tasks, which knows all of them.

    Raises:
        ConfigError: a task is unknown, or the folder does not exist.
        FrameworkError: the harness is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise FrameworkError("standard tasks need lm-evaluation-harness: pip install 'zerounlearn[study]'") from error
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"folder={str(folder)!r} is not a folder: name one with task files, or drop it")
    manager = _own_tasks() if folder is None else TaskManager(include_path=str(folder), include_defaults=False)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        hint = did_you_mean(unknown[0] if unknown else "", manager.all_tasks, "`lm_eval ls tasks` lists them")
        raise ConfigError(f"tasks={list(tasks)}: {unknown or 'no task'} is unknown to lm-evaluation-harness: {hint}")
    return manager


@cache
def _own_tasks() -> Any:
    """The harness's own; to read the files of all takes seconds, and they stay what they are."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def standard_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    folder: Path | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """The harness's metrics by task, each under the harness's own name without its filter ("acc", "acc_norm", …).

    Args:
        model: the model as it is in memory; it is neither saved nor moved.
        tokenizer: its tokenizer.
        tasks: names of tasks or groups.
        limit: at most so many documents a task; None takes all.
        shots: examples before each question; None takes the task's own.
        batch_size: requests in a forward pass.
        folder: of task files of one's own; the harness's own tasks are then not looked up, so that nothing but
            these files is needed.
        seed: of the examples drawn; the process's random states are as before afterwards.

    Raises:
        ConfigError, FrameworkError: see `check_tasks`.
    """
    manager = check_tasks(tasks, folder)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with frozen(model), _random_states():
        results: Any = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return {task: _numbers(found) for task, found in results["results"].items()}


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """Of one task; the harness's keys are "metric,filter", and where two filters give a metric the first counts."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        metric = key.split(",")[0]
        if "," in key and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            numbers.setdefault(metric, float(value))
    return numbers


@contextmanager
def _random_states() -> Iterator[None]:
    """The global random states, which the harness seeds, are put back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
