# Owns: docs/api.md and the list of docs/losses.md, written from the docstrings and signatures of what focal_ext
# exports: python tests/api.py --write
# Must not know: what the functions do.
from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
CONVENTIONS = """## What differs from torch's own losses, and why

| | torch.nn.functional | focal_ext | why |
|---|---|---|---|
| `reduction` | "mean" by default | "none" by default, as torchvision.ops; "sum" over pyramids and in the fused head | a detector divides by its positives, not by 200,000 anchors: the mean is nearly never wanted |
| divisor | the number of losses, or of weights | `normalizer` beside "sum": a number, a tensor, or "positives" | dividing in the pass costs nothing, and bf16 gradients round once |
| `ignore_index` | -100 | -2; None for none | -1 is background to most detectors, and -2 is ignored by those that ignore any; segmenters pass 255 |
| background | a class, or a row of zeros | the id -1 or C | class ids need no one-hot, and libraries disagree: both ids are taken |
| `weight` | one factor a class | whatever broadcasts to the logits: a column for rows, `[1, C]` for classes | detectors weigh images, anchors and masks of labels |
| `alpha` | none | factor of positives, 1 - alpha of negatives; one number or one a class | the paper's |
| targets | floats of the logits' dtype, or int64 ids | ids and labels of any integer dtype, bool, floats of any width | a mask of bytes is read as it is, without a copy of four times its size |
| result of "sum", "mean" | the logits' dtype | float32, float64 for float64 | a sum of 16,000,000 bf16 losses has 8 bits otherwise |
| bad targets | an assertion of the device, after which the process is lost | an error on the CPU; NaN on CUDA and in compiled graphs, an error with `focal_ext.debug()` | nothing waits for the device, and the process lives on |
"""  # noqa: E501


def signature(name: str, value: object) -> str:
    """One parameter a line, with annotations as they are written."""
    lines: list[str] = []
    for parameter in inspect.signature(value).parameters.values():  # type: ignore[arg-type]
        if parameter.kind is parameter.KEYWORD_ONLY and "    *," not in lines:
            lines.append("    *,")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
    return "\n".join([f"{name}(", *lines, ")"]) if lines else f"{name}()"


def section(name: str, value: object) -> list[str]:
    documentation = inspect.getdoc(value) or ""
    if inspect.ismodule(value):
        own = [(word, f) for word, f in vars(value).items() if inspect.isfunction(f) and f.__module__ == value.__name__]
        described = [(word, f) for word, f in own if "\n" in (f.__doc__ or "")]  # not the twins of other functions
        functions = [section(f"{name}.{word}", f) for word, f in described]
        return [f"## focal_ext.{name}", "", documentation, "", *(line for lines in functions for line in lines)]
    return [
        f"## focal_ext.{name}",
        "",
        "```python",
        signature(name, value),
        "```",
        "",
        "```text",
        documentation,
        "```",
        "",
    ]


def modules(classes: dict[str, type]) -> list[str]:
    """One section for all modules that are a function with its options kept."""
    documentation = {name: (inspect.getdoc(value) or "").split("\n\n", 1) for name, value in classes.items()}
    (shared,) = {rest.replace("\n", " ") for _, rest in documentation.values()}
    lines = [f"- `focal_ext.{name}`: {first.replace(':func:', '')}" for name, (first, _) in documentation.items()]
    return ["## Modules", "", shared, "", *lines, ""]


def losses() -> str:
    """docs/losses.md with a row for each loss: the first sentence of its documentation, and where its formula is."""
    from focal_ext._spec import FUNCTIONS

    rows = []
    for function in FUNCTIONS:
        what, source = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").split(", fused")
        name, header = function.__name__, f"{function.__name__.removesuffix('_loss')}.h"
        what, source = (words.replace("|", r"\|") for words in (what, source.strip(" .").strip("()")))
        rows.append(f"| [`{name}`](api.md#focal_ext{name}) | {what} | {source} | [{header}](../csrc/losses/{header}) |")
    table = ["<!-- losses -->", "| function | what it is | paper | formula |", "|---|---|---|---|", *rows]
    text = (DOCS / "losses.md").read_text()
    between = re.compile(r"<!-- losses -->\n.*?(?=<!-- /losses -->)", re.DOTALL)
    text, places = between.subn(lambda _: "\n".join(table) + "\n", text)
    assert places == 1, "docs/losses.md has no place for the list of losses"
    return text


def api() -> str:
    import focal_ext

    exported = [(name, getattr(focal_ext, name)) for name in sorted(focal_ext.__all__) if not name.startswith("__")]
    of_functions = {name: value for name, value in exported if hasattr(value, "function")}
    exported = [(name, value) for name, value in exported if name not in of_functions]
    head = [
        "# API",
        "",
        "Written from the docstrings by `python tests/api.py --write`; a test fails when they differ.",
        "",
        *[f"- [`{name}`](#focal_ext{name.lower()})" for name, _ in exported],
        f"- [{', '.join(f'`{name}`' for name in of_functions)}](#modules)",
        "",
        *CONVENTIONS.splitlines(),
        "",
        *modules(of_functions),
    ]
    return "\n".join([*head, *(line for name, value in exported for line in section(name, value))]).rstrip() + "\n"


PAGES = {"api.md": api, "losses.md": losses}

if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    for name, page in PAGES.items():
        (DOCS / name).write_text(page()) if "--write" in sys.argv else print(page())
