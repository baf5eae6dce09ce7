# Owns: the snippets of docs/integrations.md, read out of the page and run.
# Must not know: any library, or what a snippet should give.
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs/integrations.md"


def sections() -> dict[str, str]:
    """The page's text below each heading."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def snippets(section: str) -> list[str]:
    """The Python blocks of a section, in order."""
    return re.findall(r"```python\n(.*?)```", sections()[section], re.DOTALL)


def imports(section: str, sign: str) -> str:
    """The lines of a section's diffs that go ("-") or come ("+")."""
    blocks = re.findall(r"```diff\n(.*?)```", sections()[section], re.DOTALL)
    return "".join(line[1:] + "\n" for block in blocks for line in block.splitlines() if line.startswith(sign))


def run(code: str, **names: Any) -> dict[str, Any]:
    """The names after `code` ran among these."""
    exec(compile(code, str(PAGE), "exec"), names)
    return {name: value for name, value in names.items() if name != "__builtins__"}
