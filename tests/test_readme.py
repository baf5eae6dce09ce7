# Owns: that the README's figures are those of the checked-in CSV files.
# Must not know: the figures.
from __future__ import annotations

from bench import head_page, readme


def test_the_performance_table_is_what_the_csv_files_say() -> None:
    text = (readme.ROOT / "README.md").read_text()
    assert readme.MARKERS.sub(lambda m: m.group(1) + readme.section() + m.group(2), text) == text, "make readme"
    assert len(readme.section()) > 1000  # there is a table to compare


def test_the_table_of_heads_is_what_the_csv_files_say() -> None:
    text = (readme.ROOT / "README.md").read_text()
    assert head_page.MARKERS.sub(lambda m: m.group(1) + head_page.section() + m.group(2), text) == text, "make readme"
    assert head_page.MARKERS.search(text) and len(head_page.section()) > 500
