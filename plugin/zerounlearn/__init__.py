"""ZeroUnlearn: closed-form knowledge unlearning for language models, as a library, a program and an EasyEdit plugin.

    import zerounlearn as zu

    edit = zu.unlearn(model, tokenizer, facts, zu.ZeroUnlearn(layers=[16, 17, 18]))

Importing this module has no effect on anything else and imports nothing heavy: every name below is looked up when it is
first used. `import zerounlearn.easyedit` registers the methods with EasyEdit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zerounlearn.version import __version__

if TYPE_CHECKING:
    from zerounlearn.api import evaluate, unlearn, unlearn_and_report
    from zerounlearn.audit.registry import attacks
    from zerounlearn.audit.results import Audit
    from zerounlearn.audit.run import run_audit
    from zerounlearn.data.catalogue import datasets
    from zerounlearn.data.entry import Entry
    from zerounlearn.data.fact import Fact, load_facts
    from zerounlearn.data.request import Request
    from zerounlearn.derived import Replay, replay
    from zerounlearn.errors import (
        AssetError,
        AuditError,
        ConfigError,
        EditError,
        FrameworkError,
        IllPosedError,
        LayoutError,
        LedgerError,
        OutputError,
        RegistrationError,
        RequestError,
        StatisticsError,
        ZeroUnlearnError,
    )
    from zerounlearn.evaluation.registry import metrics
    from zerounlearn.method.base import load_method, methods
    from zerounlearn.method.edit import Edit
    from zerounlearn.method.export import export_peft
    from zerounlearn.method.gradient.dpo import DPO, IdkPO
    from zerounlearn.method.gradient.ga import GA
    from zerounlearn.method.gradient.graddiff import GradDiff
    from zerounlearn.method.gradient.npo import NPO
    from zerounlearn.method.gradient.rmu import RMU
    from zerounlearn.method.gradient.simnpo import SimNPO
    from zerounlearn.method.zerounlearn.config import ZeroUnlearn, ZeroUnlearnGD
    from zerounlearn.method.zerounlearn.separability import SeparabilityMap, separability
    from zerounlearn.method.zerounlearn.tracing import TRACED_TOKENS, CausalTrace, causal_trace
    from zerounlearn.model.families import families
    from zerounlearn.model.loading import load_model
    from zerounlearn.report.run import Report
    from zerounlearn.study.run import run_study

_HOMES = {
    "api": ("evaluate", "unlearn", "unlearn_and_report"),
    "audit.registry": ("attacks",),
    "audit.results": ("Audit",),
    "audit.run": ("run_audit",),
    "data.catalogue": ("datasets",),
    "data.entry": ("Entry",),
    "data.fact": ("Fact", "load_facts"),
    "data.request": ("Request",),
    "derived": ("Replay", "replay"),
    "errors": (
        "AssetError",
        "AuditError",
        "ConfigError",
        "EditError",
        "FrameworkError",
        "IllPosedError",
        "LayoutError",
        "LedgerError",
        "OutputError",
        "RegistrationError",
        "RequestError",
        "StatisticsError",
        "ZeroUnlearnError",
    ),
    "evaluation.registry": ("metrics",),
    "method.base": ("load_method", "methods"),
    "method.edit": ("Edit",),
    "method.export": ("export_peft",),
    "method.gradient.dpo": ("DPO", "IdkPO"),
    "method.gradient.ga": ("GA",),
    "method.gradient.graddiff": ("GradDiff",),
    "method.gradient.npo": ("NPO",),
    "method.gradient.rmu": ("RMU",),
    "method.gradient.simnpo": ("SimNPO",),
    "method.zerounlearn.config": ("ZeroUnlearn", "ZeroUnlearnGD"),
    "method.zerounlearn.separability": ("SeparabilityMap", "separability"),
    "method.zerounlearn.tracing": ("TRACED_TOKENS", "CausalTrace", "causal_trace"),
    "model.families": ("families",),
    "model.loading": ("load_model",),
    "report.run": ("Report",),
    "study.run": ("run_study",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DPO",
    "GA",
    "NPO",
    "RMU",
    "TRACED_TOKENS",
    "AssetError",
    "Audit",
    "AuditError",
    "CausalTrace",
    "ConfigError",
    "Edit",
    "EditError",
    "Entry",
    "Fact",
    "FrameworkError",
    "GradDiff",
    "IdkPO",
    "IllPosedError",
    "LayoutError",
    "LedgerError",
    "OutputError",
    "RegistrationError",
    "Replay",
    "Report",
    "Request",
    "RequestError",
    "SeparabilityMap",
    "SimNPO",
    "StatisticsError",
    "ZeroUnlearn",
    "ZeroUnlearnError",
    "ZeroUnlearnGD",
    "__version__",
    "attacks",
    "causal_trace",
    "datasets",
    "evaluate",
    "export_peft",
    "families",
    "load_facts",
    "load_method",
    "load_model",
    "methods",
    "metrics",
    "replay",
    "run_audit",
    "run_study",
    "separability",
    "unlearn",
    "unlearn_and_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
