# Owns: a loss function as a torch.nn.Module.
# Must not know: any one loss, kernels, autograd, argument rules.
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._arguments import Normalizer, Targets


class LossModule(nn.Module):
    """Keeps the options of a loss function, tensors as buffers or parameters."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = inspect.signature(type(self)).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        # Wrong numbers and words are errors here already; tensors and lists have to wait for logits to be compared with.
        plain = {name: value for name, value in options.items() if value is None or isinstance(value, (int, float, str))}
        takes_scores = type(self).function.spec.takes_scores  # type: ignore[attr-defined]
        none = (0,) * _dimensions(options)
        no_ids = torch.empty(none[1:], dtype=torch.int64)
        type(self).function.__wrapped__(torch.empty(none), (no_ids, torch.empty(none[1:])) if takes_scores else no_ids, **plain)  # type: ignore[attr-defined]
        self._options = tuple(options)
        for name, value in options.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def forward(self, inputs: Tensor, targets: Targets, weight: Tensor | None = None, normalizer: Normalizer = None) -> Tensor:
        options = {name: getattr(self, name) for name in self._options}
        given = {"weight": weight, "normalizer": normalizer}
        options.update((name, value) for name, value in given.items() if value is not None)
        return type(self).function(inputs, targets, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options if name != "weight")


def _dimensions(options: Mapping[str, Any]) -> int:
    """Of logits that the options go with, as far as they go together."""
    class_dim, batch_dims = (value if isinstance(value, int) else 0 for value in (options["class_dim"], options["batch_dims"]))
    return max(2, class_dim + 1, -class_dim, min(batch_dims, 60) + 1)


def module_of(function: Callable[..., Tensor]) -> type[LossModule]:
    """The module of a loss function: its name in capitals, its arguments behind inputs and targets, its defaults."""
    name = "".join(part.capitalize() for part in function.__name__.split("_"))
    signature = inspect.signature(function)
    return type(name, (LossModule,), {
        "__doc__": f""":func:`focal_ext.{function.__name__}` as a module, with the same arguments and defaults.

    Tensors among them move with the module, a Parameter is trained with it. What changes from step to step, ``weight`` and
    ``normalizer``, may be given to forward instead.
    """,
        "__module__": function.__module__,
        "__signature__": signature.replace(parameters=list(signature.parameters.values())[2:], return_annotation=signature.empty),
        "function": staticmethod(function),
    })  # fmt: skip
