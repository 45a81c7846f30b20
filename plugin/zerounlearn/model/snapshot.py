"""What a model looked like before somebody else's code worked on it, and how to put that back.

EasyEdit's methods write weights in place, wrap modules, register hooks, and switch gradients, caches and modes; peft
does more. A snapshot remembers all of it by identity, and copies the values of the named parameters alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_STRUCTURE = ("_modules", "_parameters", "_buffers")


class Snapshot:
    """A model's modules, hooks, modes, gradient flags and configuration, and copies of some of its parameters.

    Attributes:
        values: the copies, by the parameters' names.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """Take it; `names` are the parameters whose values may be written to.

        Raises:
            AttributeError: the model has no such parameter.
        """
        self.model = model
        self.values = {name: model.get_parameter(name).detach().clone() for name in names}
        self._written = [(model.get_parameter(name), value) for name, value in self.values.items()]
        self._parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self._attributes = [(module, _attributes(module)) for module in model.modules()]
        configs = (model.config, getattr(model, "generation_config", None))
        self._configs = [(config, dict(vars(config))) for config in configs if config is not None]

    def settle(self) -> None:
        """Put everything back but structure and values: the edit stays, and nothing is left to train."""
        before = {id(module) for module, _ in self._attributes}
        for module, attributes in self._attributes:
            _put_back(module, {**attributes, **{name: _live(module, name) for name in _STRUCTURE}})
        for module in self.model.modules():
            if id(module) not in before:
                module.training = False
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._settle_parameters()

    def restore(self) -> None:
        """Put everything back, the values bit for bit. Twice is fine."""
        for module, attributes in self._attributes:
            _put_back(module, attributes)
        with torch.no_grad():
            for parameter, value in self._written:
                parameter.copy_(value)
        self._settle_parameters()

    def finite(self) -> bool:
        """Whether the parameters that may have been written to are free of NaN and Inf."""
        return all(bool(torch.isfinite(parameter).all()) for parameter, _ in self._written)

    def same_modules(self) -> bool:
        """Whether the model is made of the modules that it was made of: nothing is wrapped, put in or taken out."""
        return [id(module) for module in self.model.modules()] == [id(module) for module, _ in self._attributes]

    def changed(self) -> dict[str, Tensor]:
        """The copies of those named parameters that are others now, by name."""
        return {n: W for n, W in self.values.items() if not torch.equal(self.model.get_parameter(n), W)}

    def _settle_parameters(self) -> None:
        for parameter, requires_grad, grad in self._parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for config, values in self._configs:
            vars(config).clear()
            vars(config).update(values)


def _attributes(module: nn.Module) -> dict[str, Any]:
    # Tables of submodules and hooks are changed in place: remember the table and what was in it.
    return {name: _live(module, name) for name in vars(module)}


def _live(module: nn.Module, name: str) -> Any:
    value = vars(module)[name]
    return _Table(value) if type(value) in (dict, OrderedDict) else value


class _Table:
    """A dictionary by identity, and its content."""

    def __init__(self, table: dict[Any, Any]) -> None:
        self.table, self.content = table, list(table.items())

    def put_back(self) -> dict[Any, Any]:
        self.table.clear()
        self.table.update(self.content)
        return self.table


def _put_back(module: nn.Module, attributes: dict[str, Any]) -> None:
    values = {name: v.put_back() if isinstance(v, _Table) else v for name, v in attributes.items()}
    vars(module).clear()
    vars(module).update(values)
