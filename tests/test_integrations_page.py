# Owns: that docs/integrations.md has every library, and that its snippets run and give the library's loss, without the
# libraries.
# Must not know: kernels. tests/integrations/test_page.py runs the snippets beside the libraries that can be installed.
from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import focal_ext
import pytest
import torch
from focal_ext import compat
from recipes import imports, run, sections, snippets
from test_compat import IDS, T, X, textbook, with_ignored

SECTIONS = {  # the page's headings, and the modules of compat that each is about
    "torchvision: RetinaNet and FCOS": ["torchvision"],
    "transformers and DETR": ["detr", "transformers"],
    "RF-DETR": ["rfdetr"],
    "ultralytics": ["ultralytics"],
    "segmentation_models_pytorch": ["segmentation_models_pytorch"],
    "kornia": ["kornia"],
    "MONAI": ["monai"],
    "mmsegmentation": ["mmseg"],
    "mmdet and mmdet3d": ["mmdet"],
    "SAM 2 and SAM 3": ["sam2", "sam3"],
    "OpenPCDet": ["openpcdet"],
    "detectron2": ["detectron2"],
    "effdet and timm": ["effdet"],
    "fvcore": ["fvcore"],
    "mmcv": ["mmcv"],
    "apex": ["apex"],
}
WITH_IMPORTS = [name for name in SECTIONS if imports(name, "+")]


def test_every_library_has_a_section_that_says_what_it_must() -> None:
    assert list(sections()) == ["The line", "What it gains", "Labels", *SECTIONS] and {
        module for modules in SECTIONS.values() for module in modules
    } == set(compat.__all__)
    for text in (sections()[name] for name in SECTIONS):
        assert all(f"\n- {word}: " in text for word in ("Handled for you", "What changes")) and (
            "```python" in text or "```diff" in text
        )


def test_the_table_of_lines_has_every_switch_with_the_version_it_knows() -> None:
    lines = [
        row.split(" | ")
        for row in sections()["The line"].splitlines()
        if "focal_ext.compat" in row and row.startswith("|")
    ]
    table = {re.search(r"compat\.(\w+)\.(apply|convert_)", row[1]).group(1): row[2] for row in lines}
    switches = {
        name: getattr(compat, name).SWITCH for name in compat.__all__ if hasattr(getattr(compat, name), "SWITCH")
    }
    assert table.keys() == switches.keys()
    assert all(tried.startswith((switches[name].known, "its formulas")) for name, tried in table.items())


def test_the_line_says_what_is_missing_where_a_library_is() -> None:
    for name in SECTIONS:
        for module in SECTIONS[name]:
            for snippet in snippets(name):
                if f"compat.{module}.apply()" in snippet and module not in ("transformers", "effdet"):
                    with pytest.raises((ModuleNotFoundError, RuntimeError)):
                        run(snippet)


def test_the_page_is_linked_from_where_one_starts() -> None:
    root = Path(__file__).resolve().parents[1]
    assert all("docs/integrations.md" in (root / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))


@pytest.mark.parametrize("section", WITH_IMPORTS)
def test_the_new_import_has_every_name_of_the_old_one(section: str) -> None:
    came = run(imports(section, "+"))
    assert set(came) == {name.strip() for name in imports(section, "-").split("import")[1].split(",")}
    assert all(value.__module__ == f"focal_ext.compat.{SECTIONS[section][0]}" for value in came.values())


def mask_and_one_hot(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the libraries compute from labels in which the number of classes is background and negative numbers are
    ignored."""
    kept = labels >= 0
    return textbook(x[kept], (labels[kept][:, None] == torch.arange(x.shape[-1])).double(), 2, 0.25).sum()


def test_detectron2s_one_call_replaces_mask_and_one_hot() -> None:
    labels, retinanet = with_ignored(5, -1), SimpleNamespace(focal_loss_alpha=0.25, focal_loss_gamma=2.0)
    levels = [X.view(2, 6, 5)[:, :4], X.view(2, 6, 5)[:, 4:]]
    names = {
        "torch": torch,
        "focal_ext": focal_ext,
        "self": retinanet,
        "pred_logits": levels,
        "gt_labels": labels.view(2, 6),
        "normalizer": 91.0,
    }
    found = run(snippets("detectron2")[1], **names)
    torch.testing.assert_close(found["loss_cls"], mask_and_one_hot(X, labels) / 91, rtol=1e-12, atol=0)


def test_the_detr_criterion_takes_class_ids() -> None:
    found = run(
        snippets("transformers and DETR")[2],
        focal_ext=focal_ext,
        src_logits=X.view(2, 6, 5),
        target_classes=IDS.view(2, 6),
        num_boxes=3.0,
    )
    # which multiplies by the queries
    by_criterion = compat.detr.sigmoid_focal_loss(X.view(2, 6, 5), T.view(2, 6, 5), 3.0) * 6
    torch.testing.assert_close(found["loss_ce"], by_criterion, rtol=1e-12, atol=0)
