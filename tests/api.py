# Owns: docs/api.md, written from the docstrings and signatures of what focal_ext exports: python tests/api.py --write
# Must not know: what the functions do.
from __future__ import annotations

import inspect
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/api.md"


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
        return [f"## focal_ext.{name}", "", documentation, ""]
    return [f"## focal_ext.{name}", "", "```python", signature(name, value), "```", "", "```text", documentation, "```", ""]


def page() -> str:
    import focal_ext

    exported = [(name, getattr(focal_ext, name)) for name in sorted(focal_ext.__all__) if not name.startswith("__")]
    head = ["# API", "", "Written from the docstrings by `python tests/api.py --write`; a test fails when they differ.", "", *[f"- [`{name}`](#focal_ext{name.lower()})" for name, _ in exported], ""]
    return "\n".join([*head, *(line for name, value in exported for line in section(name, value))]).rstrip() + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parents[1]))
    PAGE.write_text(page()) if "--write" in sys.argv else print(page())
