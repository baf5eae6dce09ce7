# Owns: a torch without one of the private names that focal_ext knows: the core table of values, gradients,
# torch.compile and torch.func.
# Must not know: values beyond the core table (test_values.py).
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PRIVATE = Path(__file__).resolve().parents[1] / "focal_ext" / "_torch_private.py"
GONE = "focal_ext takes the plain PyTorch reference"
# Each name that is looked up, and how the import's warning begins when it is gone.
NAMES = {
    "_are_functorch_transforms_active": GONE,
    "_get_current_graph_task_keep_graph": "",
    "is_legacy_batchedtensor": "",
    "_AutoDispatchBelowAutograd": "",
    "_is_tracing": "",
    "_after_ADInplaceOrView_keyset": "",
    "_AutoDispatchBelowADInplaceOrView": "",
    "unwrap_if_dead": "",
    "_cuda_getDriverVersion": "",
    "apply": "",
    "_current_level": GONE,
    "_base": "",
    "has_static_value": "",
    "guard_or_true": "",
    "guard_or_false": "",
    "guard_scalar": "",
    "_schema": "",
    "_library": "",
    "autograd": "",
    "make_autograd_impl": "",
    "Info": "",
}
# Run once for all names, so that torch is imported once: a child for each has it hidden from the one file that looks it
# up. Where nothing is hidden all calls are made, elsewhere the first and one of the others by turns.
SCRIPT = """
import functools, importlib.util, itertools, os, sys, traceback, warnings
import torch

OF_CHANGING_NUMBERS = "nothing", "has_static_value", "guard_or_true", "guard_or_false", "guard_scalar", "_schema"

def core_table(hidden, place):
    import focal_ext
    from focal_ext import reference
    from torch.func import grad, vmap

    torch.manual_seed(0)
    x, ids, along = torch.randn(12, 5), torch.randint(-1, 6, (12,)), torch.linspace(-1, 1, 60).view(12, 5)
    losses = {
        "ids": lambda home, x, **o: home.sigmoid_focal_loss(x, ids, **o),
        "dense": lambda home, x, **o: home.asymmetric_loss(x, x.detach() > 0, **o),
        "softmax": lambda home, x, **o: home.softmax_focal_loss(x, ids.clamp(0, 4), **{"reduction": "sum", **o}),
    }
    def levels(x):
        return [x.reshape(1, 5, 4, 3)]
    def loss_and_gradient(f, x, factor=3.0, keep=False):
        leaf = x.clone().requires_grad_()
        loss = f(leaf * 1)
        total = (loss * factor).sum()
        if keep:
            torch.autograd.grad(total, leaf, retain_graph=True)
        return loss.detach(), torch.autograd.grad(total, leaf)[0]
    def same(a, b):
        for u, v in zip(a, b):
            torch.testing.assert_close(u, v, rtol=2e-6, atol=1e-7)
    calls = [*itertools.product(losses, ("sum", "none"))]
    for name, reduction in calls if hidden == "nothing" else (calls[0], calls[1 + place % 5]):
        loss = losses[name]
        ours, plain = (functools.partial(loss, home, reduction=reduction) for home in (focal_ext, reference))
        want = loss_and_gradient(plain, x)
        same(loss_and_gradient(ours, x), want)
        same(loss_and_gradient(ours, x, keep=True), want)
        same(loss_and_gradient(functools.partial(ours, overwrite_inputs=True), x), want)
        with torch.no_grad():
            same([ours(x)], want[:1])
        if (name, reduction) == ("ids", "sum"):
            same(loss_and_gradient(torch.compile(ours, backend="aot_eager", fullgraph=True), x), want)
            step = lambda x, n, home=focal_ext: loss(home, x, gamma=n, alpha=n / 4, reduction="sum", normalizer=n)
            compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
            for n in (1.5, 2.5, 3.5) if hidden in OF_CHANGING_NUMBERS else ():
                by_reference = loss_and_gradient(lambda x: step(x, n, reference), x)
                same(loss_and_gradient(lambda x: compiled(x, n), x), by_reference)
        same([grad(lambda x: 3 * ours(x).sum())(x)], want[1:])
        rows = lambda x, ids: focal_ext.sigmoid_focal_loss(x, ids, reduction=reduction)
        same([vmap(rows)(x, ids).sum()], [rows(x, ids).sum()])
        primal, tangent = torch.func.jvp(ours, (x,), (along,))
        same([(tangent.sum() * 3).float()], [(want[1] * along).sum()])
        with torch.autograd.forward_ad.dual_level():
            dual = ours(torch.autograd.forward_ad.make_dual(x, along))
            tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
            same([(tangent.sum() * 3).float()], [(want[1] * along).sum()])
        leaf = x.clone().requires_grad_()
        first = torch.autograd.grad(ours(leaf).sum(), leaf, create_graph=True)[0]
        leaf_of_plain = x.clone().requires_grad_()
        plain_first = torch.autograd.grad(plain(leaf_of_plain).sum(), leaf_of_plain, create_graph=True)[0]
        same(torch.autograd.grad(first.sum(), leaf), torch.autograd.grad(plain_first.sum(), leaf_of_plain))
        batched = torch.stack([torch.ones_like(want[0]), 2 * torch.ones_like(want[0])])
        leaf = x.clone().requires_grad_()
        (many,) = torch.autograd.grad(ours(leaf), leaf, batched, is_grads_batched=True)
        same([many[0] * 3, many[1]], [want[1], want[1] / 1.5])
    pyramid = lambda x: focal_ext.pyramid.sigmoid_focal_loss(levels(x), ids[None], 5)
    rows = lambda x: reference.sigmoid_focal_loss(x.reshape(1, 5, 12).transpose(1, 2), ids[None], reduction="sum")
    want = loss_and_gradient(rows, x)
    same(loss_and_gradient(pyramid, x), want)
    same(loss_and_gradient(pyramid, x, keep=True), want)
    leaf = x.clone().requires_grad_()
    for view in (leaf, leaf.view(60).view(12, 5)):
        try:
            focal_ext.sigmoid_focal_loss(view, ids, overwrite_inputs=True).sum().backward()
        except ValueError as error:
            assert "is a leaf that requires grad, or a view of one" in str(error)
        assert torch.equal(leaf, x)
    wrapped = []
    grad(lambda y: (wrapped.append(y), y.sum())[1])(x)  # a transform that is over leaves a dead wrapper
    same([focal_ext.sigmoid_focal_loss(wrapped[0], ids)], [focal_ext.sigmoid_focal_loss(x, ids)])

def without(name, place):
    spec = importlib.util.spec_from_file_location("focal_ext._torch_private", sys.argv[1])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    module.getattr = lambda home, asked, *default: default[0] if asked == name else getattr(home, asked, *default)
    module.hasattr = lambda home, asked: asked != name and hasattr(home, asked)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        spec.loader.exec_module(module)
        import focal_ext
    assert focal_ext._autograd.keeps_graph is module.keeps_graph
    core_table(name, place)
    return "; ".join(str(w.message) for w in said)

def import_what_the_children_need():
    x = torch.ones(2, requires_grad=True)
    torch.compile(lambda x, n: (x.sin() * n).sum(), backend="aot_eager", fullgraph=True)(x, 1.5).backward()
    torch.func.jvp(torch.func.vmap(torch.sin), (x.detach(),), (x.detach(),))

import_what_the_children_need()
for place, name in enumerate(sys.argv[2:]):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            print(name, "ok", without(name, place), sep="|", flush=True)
        except BaseException:
            print(name, "failed", traceback.format_exc()[-700:].replace("\\n", "; "), sep="|", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, str]]:
    command = [sys.executable, "-c", SCRIPT, str(PRIVATE), "nothing", *NAMES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PRIVATE.parents[1]), *filter(None, sys.path)])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {
        name: (state, said)
        for name, state, said in (line.split("|", 2) for line in done.stdout.splitlines() if "|" in line)
    }


@pytest.mark.parametrize("name", ["nothing", *NAMES])
def test_without_a_private_name_the_core_table_holds(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    state, said = outcomes[name]
    assert state == "ok" and said.startswith(NAMES.get(name, "")) and bool(said) == bool(NAMES.get(name)), said


def test_every_name_that_is_looked_up_is_one_that_the_table_hides() -> None:
    public = {"variable", "default"}
    looked_up = set(re.findall(r'\b(?:get|has)attr\([^"]*?"(\w+)"', PRIVATE.read_text()))
    assert looked_up - public == set(NAMES)
