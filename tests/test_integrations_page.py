# Owns: that docs/integrations.md has every library, and that its snippets run and give the library's loss, without the libraries.
# Must not know: kernels. tests/integrations/test_page.py runs the snippets beside the libraries that can be installed.
from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import focal_ext
import pytest
import torch
from focal_ext import compat
from recipes import imports, run, sections, snippets
from test_compat import FOCAL, IDS, KEPT, T, X, with_ignored
from torch import nn

SECTIONS = {  # the page's headings, and the modules of compat that each is about
    "torchvision: RetinaNet and FCOS": ["torchvision"], "fvcore": ["fvcore"], "detectron2": ["fvcore"], "mmdet": ["mmdet"], "mmcv": ["mmcv"],
    "apex": ["apex"], "effdet and timm": ["effdet"], "DETR and transformers": ["detr", "transformers"], "MONAI": ["monai"],
}
WITH_IMPORTS = [name for name in SECTIONS if imports(name, "+")]


def test_every_library_has_a_section_that_says_what_it_must() -> None:
    assert list(sections()) == list(SECTIONS) and {module for modules in SECTIONS.values() for module in modules} == set(compat.__all__)
    for text in sections().values():
        assert all(f"\n- {word}: " in text for word in ("Labels", "Normaliser", "Handled for you")) and ("```python" in text or "```diff" in text)


def test_the_page_is_linked_from_where_one_starts() -> None:
    root = Path(__file__).resolve().parents[1]
    assert all("docs/integrations.md" in (root / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))


@pytest.mark.parametrize("section", WITH_IMPORTS)
def test_the_new_import_has_every_name_of_the_old_one(section: str) -> None:
    came = run(imports(section, "+"))
    assert set(came) == {name.strip() for name in imports(section, "-").split("import")[1].split(",")}
    assert all(value.__module__ == f"focal_ext.compat.{SECTIONS[section][0]}" for value in came.values())


def mask_and_one_hot(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the libraries compute from labels in which the number of classes is background and negative numbers are ignored."""
    kept = labels >= 0
    return FOCAL(x[kept], (labels[kept][:, None] == torch.arange(x.shape[-1])).double(), 2, 0.25).sum()


def package(name: str, monkeypatch: pytest.MonkeyPatch, **names: Any) -> ModuleType:
    """A stand-in for a module of a library and for the packages above it."""
    parts = name.split(".")
    modules = [ModuleType(".".join(parts[: length + 1])) for length in range(len(parts))]
    for above, below in zip(modules, modules[1:]):
        setattr(above, below.__name__.rpartition(".")[2], below)
    for module in modules:
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(modules[-1]).update(names)
    return modules[-1]


def test_detectron2s_assignment_takes_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    module = package("detectron2.modeling.meta_arch.retinanet", monkeypatch, sigmoid_focal_loss_jit=None)
    run(snippets("detectron2")[0])
    labels = with_ignored(5, -1)
    kept = labels >= 0
    one_hot = nn.functional.one_hot(labels[kept], num_classes=6)[:, :-1]
    loss = module.sigmoid_focal_loss_jit(X[kept], one_hot.to(X.dtype), alpha=0.25, gamma=2.0, reduction="sum")
    torch.testing.assert_close(loss, mask_and_one_hot(X, labels), rtol=1e-12, atol=0)


def test_detectron2s_one_call_replaces_mask_and_one_hot() -> None:
    labels, retinanet = with_ignored(5, -1), SimpleNamespace(focal_loss_alpha=0.25, focal_loss_gamma=2.0)
    levels = [X.view(2, 6, 5)[:, :4], X.view(2, 6, 5)[:, 4:]]
    names = {"torch": torch, "focal_ext": focal_ext, "self": retinanet, "pred_logits": levels, "gt_labels": labels.view(2, 6), "normalizer": 91.0}
    found = run(snippets("detectron2")[1], **names)
    torch.testing.assert_close(found["loss_cls"], mask_and_one_hot(X, labels) / 91, rtol=1e-12, atol=0)


class Registry:
    """mmengine's, as far as the page uses it: register_module(name=None, force=False, module=None)."""

    def __init__(self) -> None:
        self.types = {"FocalLoss": object, "QualityFocalLoss": object, "VarifocalLoss": object}

    def register_module(self, name: str | None = None, force: bool = False, module: type | None = None) -> None:
        assert inspect.isclass(module)
        if module.__name__ in self.types and not force:
            raise KeyError(module.__name__)
        self.types[name or module.__name__] = module


def test_mmdets_registry_builds_the_fused_losses_from_unchanged_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    package("mmdet.registry", monkeypatch, MODELS=registry)
    run(snippets("mmdet")[0])
    assert {kind.__module__ for kind in registry.types.values()} == {"focal_ext.compat.mmdet"} and len(registry.types) == 3
    # The configs of RetinaNet, GFL and VFNet.
    focal = registry.types["FocalLoss"](use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
    registry.types["QualityFocalLoss"](use_sigmoid=True, beta=2.0, loss_weight=1.0)
    registry.types["VarifocalLoss"](use_sigmoid=True, alpha=0.75, gamma=2.0, iou_weighted=True, loss_weight=1.0)
    loss = focal(X, IDS, KEPT, avg_factor=3)  # as AnchorHead calls it
    torch.testing.assert_close(loss, (FOCAL(X, T, 2, 0.25) * KEPT[:, None]).sum() / (3 + torch.finfo(torch.float32).eps), rtol=1e-12, atol=0)


def test_the_detr_criterion_takes_class_ids() -> None:
    found = run(snippets("DETR and transformers")[2], focal_ext=focal_ext, src_logits=X.view(2, 6, 5), target_classes=IDS.view(2, 6), num_boxes=3.0)
    by_criterion = compat.detr.sigmoid_focal_loss(X.view(2, 6, 5), T.view(2, 6, 5), 3.0) * 6  # which multiplies by the queries
    torch.testing.assert_close(found["loss_ce"], by_criterion, rtol=1e-12, atol=0)
