# Owns: the core table of cases over installed distributions, outside the source tree: each torch, each Python, without
# native code.
# Must not know: how the distributions are built (test_builds.py).
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from built_package import build_package
from environments import CPU, CUDA, HOME, NATIVE, OLDEST, OTHER_PYTHONS, REFERENCE, ROOT, Environment, built, run

# What depends on the interpreter: arguments, errors, what is said at import. The library and its numbers do not:
# `python -m focal_ext` compares them there.
OF_PYTHON = ("test_constants", "test_errors", "test_fallback")
SUITE = ("test_values", "test_constants", "test_errors", "test_empty", "test_overwrite", "test_fallback")
# focal_ext.reference by name computes the same with every Python, and where the reference is in use both names are it.
REPEATED = "focal_ext.reference"
KERNELS = ROOT / "build/headers/cmake"  # compiled by make test-headers, if that ran
FACTS = "import json, focal_ext; print(json.dumps([focal_ext.__file__, focal_ext.build_info()]))"


def passes_the_suite(
    environment: Environment, folder: Path, backend: str = "native", warnings: str = "error", **changes: str
) -> dict[str, object]:
    """Runs the core of the test-suite, copied to a folder of its own; returns build_info()."""
    tests = folder / "tests"
    shutil.copytree(
        ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__", "wheels", "kernels", "gpu", "cpp", "cuda_*")
    )
    # CPU's torch is the suite's own: its numbers are those of make test
    few = backend == "native" and environment in (
        *OTHER_PYTHONS,
        CPU,
    )
    modules = [f"{name}.py" for name in (OF_PYTHON if few else SUITE) if name != "test_fallback" or backend == "native"]
    chosen = (
        f"not {REPEATED} and not passes_the_suites_rules"
        if few
        else f"not {REPEATED}"
        if backend == "reference"
        else ""
    )
    options = (
        "-n",
        "auto",
        "--maxprocesses",
        "8",
        "--dist",
        "worksteal",
        "-k",
        chosen,
        "-W",
        f"{warnings}::RuntimeWarning",
        "-p",
        "no:cacheprovider",
    )
    # numbers are the library's, whatever torch it runs in: a few rows of the table show that they arrive
    environment_variables = {**changes, "FOCAL_EXT_TEST_BACKEND": backend, "FOCAL_EXT_TEST_EVERY": "8"}
    output = run(
        environment.executable, "-m", "pytest", "-q", *options, *modules, folder=tests, **environment_variables
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > (250 if few else 500) and "skipped" not in output, output[-3000:]
    place, info = json.loads(run(environment.executable, "-W", "ignore", "-c", FACTS, folder=folder, **changes))
    assert ROOT not in Path(place).parents or "site-packages" in Path(place).parts
    assert info["backend"] == backend and info["torch"].startswith(environment.torch)
    return info


@pytest.mark.parametrize("environment", NATIVE, ids=lambda e: f"{e.name} {e.torch}, Python 3.{e.minor}")
def test_the_wheel_works_with(environment: Environment, tmp_path: Path) -> None:
    environment.replace_focal_ext(built("*-manylinux*.whl"))
    passes_the_suite(environment, tmp_path)
    run(environment.executable, "-m", "focal_ext", folder=tmp_path)  # every loss and dtype against float64


def test_a_torch_older_than_the_library_is_left_alone_and_said_once(tmp_path: Path) -> None:
    """The wheel is the same; what asks for a newer torch is the library in it, not the package."""
    REFERENCE.replace_focal_ext(built("*-manylinux*.whl"))
    info = passes_the_suite(REFERENCE, tmp_path, backend="reference", warnings="ignore")
    assert f"need torch >= 2.10, this is torch {info['torch']}; update torch" in str(info["reason"])
    said = run(REFERENCE.executable, "-c", "import focal_ext; focal_ext.sigmoid_focal_loss", folder=tmp_path)
    assert said.count("RuntimeWarning") == 1 and "right but slow: the fused kernels need torch >= 2.10" in said


# What the suite's core does not call, in one process: torch.compile, a function of focal_ext.compat, a fused head
# trained for three steps.
BEYOND_THE_CORE = """
import focal_ext, torch
from focal_ext import reference
from focal_ext.compat import torchvision

torch.manual_seed(0)
x, ids = torch.randn(12, 5), torch.randint(-1, 6, (12,))
hard = (x > 0).float()
head, feature = focal_ext.FusedFocalHead(2, 1, 5, normalizer="positives"), torch.randn(1, 2, 4, 3)

def compiled(loss):
    graph = {"backend": "aot_eager", "fullgraph": %(fullgraph)s}
    return lambda x, **options: torch.compile(lambda x: loss(x, **options), **graph)(x)

def loss_and_gradients(loss, *wanted):
    wanted = [t.detach().clone().requires_grad_() for t in wanted]
    loss = loss(*wanted)
    return loss.detach(), *torch.autograd.grad(loss, wanted)

def of_ids(home):
    return lambda x: home.sigmoid_focal_loss(x, ids, gamma=1.5, reduction="sum", normalizer="positives")

def plain_head(weight, bias, feature):
    logits = torch.conv2d(feature, weight, bias, padding=1)
    return reference.sigmoid_focal_loss(logits.flatten(2).mT, ids[None], reduction="sum", normalizer="positives")

def same(name, ours, right):
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=4e-6, atol=1e-7)
    print(name, "right")

for name, home in (("torch.compile", focal_ext), ("reference", reference)):
    same(name, loss_and_gradients(compiled(of_ids(home)), x), loss_and_gradients(of_ids(reference), x))
same("compat", loss_and_gradients(lambda x: torchvision.sigmoid_focal_loss(x, hard, reduction="sum"), x),
     loss_and_gradients(lambda x: reference.sigmoid_focal_loss(x, hard, reduction="sum"), x))
for step in range(3):
    head.zero_grad()
    leaf = feature.clone().requires_grad_()
    loss = head([leaf], ids[None])
    loss.backward()
    got = loss.detach(), head.weight.grad, head.bias.grad, leaf.grad
    same("head", got, loss_and_gradients(plain_head, head.weight, head.bias, feature))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter -= parameter.grad
"""


@pytest.mark.parametrize("environment", [REFERENCE, OLDEST], ids=lambda e: e.name)
def test_compiled_compat_and_fused_losses_are_right_with(environment: Environment, tmp_path: Path) -> None:
    """Before torch 2.10 a graph breaks at a loss."""
    environment.replace_focal_ext(built("*-manylinux*.whl"))
    script = BEYOND_THE_CORE % {"fullgraph": environment is not REFERENCE}
    said = run(environment.executable, "-W", "ignore", "-c", script, folder=tmp_path)
    assert said.split() == ["torch.compile", "right", "reference", "right", "compat", "right", *["head", "right"] * 3]


@pytest.mark.parametrize("headers, environment", [(OLDEST, CPU), (OLDEST, CUDA), (CUDA, OLDEST)], ids=lambda e: e.name)
def test_a_library_built_with_the_headers_of_one_torch_works_in_another(
    headers: Environment, environment: Environment, tmp_path: Path
) -> None:
    packages = build_package(HOME / "built" / headers.torch, headers.prepare().package.parent / "torch", "-O1", KERNELS)
    place, info = json.loads(
        run(
            environment.prepare().executable,
            "-W",
            "error::RuntimeWarning",
            "-c",
            FACTS,
            folder=tmp_path,
            PYTHONPATH=str(packages),
        )
    )
    assert (
        packages in Path(place).parents and info["backend"] == "native" and info["torch"].startswith(environment.torch)
    )
    # every loss and dtype against float64
    run(environment.executable, "-m", "focal_ext", folder=tmp_path, PYTHONPATH=str(packages))


def test_the_pure_wheel_works_through_the_reference(tmp_path: Path) -> None:
    CPU.prepare()
    run(
        CPU.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, built("*.tar.gz"), FOCAL_EXT_NATIVE="0"
    )
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    CPU.replace_focal_ext(wheel)
    info = passes_the_suite(CPU, tmp_path, backend="reference", FOCAL_EXT_NATIVE="0")
    assert "asks for the reference" in str(info["reason"])
    said = run(CPU.executable, "-c", "import focal_ext", folder=tmp_path)
    assert "RuntimeWarning" in said and "has no libfocal_ext.so" in said and "pip install" in said
