# Owns: a loss function as a torch.nn.Module.
# Must not know: any one loss, kernels, autograd, argument rules.
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._arguments import Normalizer, Targets
from ._levels import Maps, check_classes


class LossModule(nn.Module):
    """Keeps the options of a loss function, tensors as buffers or parameters."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = inspect.signature(type(self)).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        # Wrong numbers and words are errors here already; tensors and lists have to wait for logits to be compared
        # with.
        self._ask_for_nothing(
            {name: value for name, value in options.items() if value is None or isinstance(value, (int, float, str))}
        )
        self._options = tuple(options)
        for name, value in options.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def _ask_for_nothing(self, plain: dict[str, Any]) -> None:
        """A call without logits, which raises for an option that breaks its rule."""
        none = (0,) * _dimensions(plain)
        loss: Any = type(self).function
        loss.__wrapped__(torch.empty(none), self._no_targets(none[1:]), **plain)

    def _no_targets(self, shape: tuple[int, ...]) -> Any:
        ids = torch.empty(shape, dtype=torch.int64)
        return (ids, torch.empty(shape)) if type(self).function.spec.needs_scores else ids  # type: ignore[attr-defined]

    def forward(
        self, inputs: Tensor, targets: Targets, weight: Tensor | None = None, normalizer: Normalizer = None
    ) -> Tensor:
        return self._loss(inputs, targets, weight, normalizer)

    def _loss(self, inputs: Any, targets: Any, weight: Tensor | None, normalizer: Normalizer) -> Tensor:
        options = {name: getattr(self, name) for name in self._options}
        given = {"weight": weight, "normalizer": normalizer}
        options.update((name, value) for name, value in given.items() if value is not None)
        return type(self).function(inputs, targets, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options if name != "weight")


class PyramidLossModule(LossModule):
    """The same over the levels of a pyramid."""

    def _ask_for_nothing(self, plain: dict[str, Any]) -> None:
        check_classes(plain.get("num_classes"))
        type(self).function([torch.empty(0, plain["num_classes"], 0, 0)], self._no_targets((0, 0)), **plain)

    def forward(  # type: ignore[override]
        self, levels: Maps, targets: Any, weight: Tensor | None = None, normalizer: Normalizer = None
    ) -> Tensor:
        return self._loss(levels, targets, weight, normalizer)


def _dimensions(options: Mapping[str, Any]) -> int:
    """How many dimensions logits need for these options, as far as the options go together."""
    class_dim, batch_dims = (
        value if isinstance(value, int) else 0 for value in (options["class_dim"], options["batch_dims"])
    )
    return max(2, class_dim + 1, -class_dim, min(batch_dims, 60) + 1)


def module_of(function: Callable[..., Tensor], base: type[LossModule] = LossModule) -> type[LossModule]:
    """The module of a loss function: its name in capitals, its arguments behind inputs and targets, its defaults."""
    path = "focal_ext.pyramid" if base is PyramidLossModule else "focal_ext"
    name = "".join(part.capitalize() for part in function.__name__.split("_"))
    signature = inspect.signature(function)
    return type(
        name,
        (base,),
        {
            "__doc__": f""":func:`{path}.{function.__name__}` as a module, with the same arguments and defaults.

    Forward takes what the function takes first: logits, or levels, and targets. ``weight`` and ``normalizer`` may be
    given to it instead. A tensor moves with the module and is not in its state dict; an nn.Parameter is, and is
    trained.
    """,
            "__module__": function.__module__,
            "__signature__": signature.replace(
                parameters=list(signature.parameters.values())[2:], return_annotation=signature.empty
            ),
            "function": staticmethod(function),
        },
    )
