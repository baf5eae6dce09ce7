# Owns: every private name of torch, and what is done with a torch that has it no more: the public way, or the
# reference.
# Must not know: losses, arguments.
from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")


def _always(*_: object) -> bool:
    return True


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


# Whether a transform of torch.func runs. Gone: taken for granted, so that every call takes the reference.
is_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _always)
# Whether this backward keeps its graph. Gone: taken for granted, so that a saved gradient is multiplied and not scaled
# in place.
keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", _always)
# Whether grad_output is many at once (is_grads_batched=True). Gone: taken for granted, with the same effect.
is_batched: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", _always)
# A context in which ops do without autograd's dispatch. Gone: no_grad, which costs more.
below_autograd: Callable[[], AbstractContextManager[None]] = getattr(
    torch._C, "_AutoDispatchBelowAutograd", torch.no_grad
)
# Whether torch.jit.trace runs. Gone: the public way, which costs more.
is_jit_traced: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]
# A context in which ops in place do without the rule for leaves and versions (focal_ext._graphs), and the dispatch keys
# below that rule. Gone: there is no such rule for raw ops in place, which no public function needs.
in_place_keys: torch._C.DispatchKeySet | None = getattr(torch._C, "_after_ADInplaceOrView_keyset", None)
below_in_place: Callable[[], AbstractContextManager[None]] = getattr(
    torch._C, "_AutoDispatchBelowADInplaceOrView", nullcontext
)
# What a transform that is over left of a tensor, taken off; apply_of() needs it.
unwrap_if_dead: Callable[[Tensor], Tensor] = getattr(torch._C._functorch, "unwrap_if_dead", _as_it_is)
# The version of CUDA that the driver supports, as 1000 major + 10 minor. Gone: the driver is trusted.
cuda_driver_version: Callable[[], int] = getattr(torch._C, "_cuda_getDriverVersion", lambda: 10**6)


def constant_to_compile(function: Callable[[int | None], bool]) -> Callable[[int | None], bool]:
    """Called by torch.compile while it traces, its answer a constant of the graph.
    torch.compiler.assume_constant_result does the same after importing the compiler, which takes seconds. Gone: traced
    like other code, up to a graph break."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """function.apply without its Python frame, of which only unwrap_if_dead() is needed. Gone: function.apply."""
    bare = getattr(super(torch.autograd.Function, function), "apply", None)
    return function.apply if bare is None or unwrap_if_dead is _as_it_is else bare


def _is_differentiated_forward() -> bool:
    """Whether torch.func or forward-mode AD runs: they ask for derivatives that no kernel has."""
    return is_transformed() or forward_ad._current_level >= 0


# Gone: taken for granted, so that every call takes the reference.
is_differentiated_forward = _is_differentiated_forward if hasattr(forward_ad, "_current_level") else _always

if _always in (is_transformed, is_differentiated_forward):
    warnings.warn(
        f"focal_ext takes the plain PyTorch reference, right but slow: in torch {torch.__version__} it cannot see "
        "whether torch.func or"
        " forward-mode AD runs; use an earlier torch, or a later focal_ext",
        RuntimeWarning,
        stacklevel=2,
    )


def owner_of(tensor: Tensor) -> Tensor:
    """The tensor of which this is a view, or the tensor. Gone: looked for along the graph."""
    if hasattr(tensor, "_base"):
        return tensor if tensor._base is None else tensor._base
    node = tensor.grad_fn
    while node is not None and node.next_functions:
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", tensor)
    return leaf if leaf.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() else tensor


# What symbols of a graph are. The module is loaded whenever there are any. Gone: they are taken for constants, and
# every value is compiled anew.


def has_static_value(number: float) -> bool:
    from torch.fx.experimental import symbolic_shapes

    known = getattr(symbolic_shapes, "has_static_value", None)
    return True if known is None else known(number)


def guard_or(condition: bool, unknown: bool) -> bool:
    """The condition as a bool, on which the graph is guarded; `unknown` if it is one of values that the graph reads."""
    from torch.fx.experimental import symbolic_shapes

    decide = (
        getattr(symbolic_shapes, "guard_or_true", None) if unknown else getattr(symbolic_shapes, "guard_or_false", None)
    )
    return condition if decide is None else decide(condition)


def specialized(number: float) -> float:
    """The number as a constant of the graph."""
    from torch.fx.experimental import symbolic_shapes

    guard = getattr(symbolic_shapes, "guard_scalar", None)
    return number if guard is None else guard(number)


def schema_of(op: Any) -> str | None:
    """The schema of an op that has one overload. Gone: None, and every value is compiled anew."""
    overload = getattr(op, "default", None)
    schema = getattr(overload, "_schema", None)
    return None if schema is None else str(schema)


def outside_old_graphs(function: Callable[P, R], version: str = torch.__version__) -> Callable[P, R]:
    """The function, at which torch.compile breaks its graph before torch 2.10: it cannot trace there what checks a
    call."""
    if tuple(int(part) for part in version.split(".")[:2]) >= (2, 10):
        return function

    @functools.wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        # torch.compiler.disable imports the compiler, which takes seconds: only where somebody has imported it.
        compiles = "torch._dynamo" in sys.modules
        return (torch.compiler.disable(function) if compiles else function)(*args, **kwargs)

    # What torch.compiler.disable sets. Gone: the graph breaks inside.
    setattr(outside, "_torchdynamo_disable", True)  # noqa: B010
    return outside


# torch's own registrations, without what takes half of an import. Gone: torch.library's functions.
_library = getattr(torch, "_library", None)


def register_fake(name: str, fake: Callable[..., Any], registrations: torch.library.Library) -> None:
    """torch.library.register_fake without its search of all modules for the lines that call it, of which it keeps the
    place alone."""
    place = f"{fake.__code__.co_filename}:{fake.__code__.co_firstlineno}"
    try:
        entry: Any = _library.simple_registry.singleton.find(name)  # type: ignore[union-attr]
        entry.fake_impl.register(fake, place, registrations)
    except (AttributeError, TypeError):
        torch.library.register_fake(name, fake, lib=registrations)


def register_autograd(
    op: Any, backward: Callable[..., Any], setup: Callable[..., Any], registrations: torch.library.Library
) -> None:
    """torch.library.register_autograd, which makes a class for each op, put off to an op's first call: most processes
    never call the op itself."""
    formula: Any = getattr(_library, "autograd", None)
    if not (hasattr(formula, "make_autograd_impl") and hasattr(formula, "Info")):
        torch.library.register_autograd(op, backward, setup_context=setup, lib=registrations)
        return

    @functools.cache
    def made() -> Callable[..., Any]:
        kernel: Callable[..., Any] = formula.make_autograd_impl(op, formula.Info(backward, setup))
        return kernel

    def first_made(keys: Any, *given: Any) -> Any:
        return made()(keys, *given)

    registrations.impl(op, first_made, "Autograd", with_keyset=True)
