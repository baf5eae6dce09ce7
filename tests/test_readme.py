# Owns: that the figures of the README and of the table of losses are those of the checked-in CSV files.
# Must not know: the figures.
from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench import readme


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_tables_are_what_the_csv_files_say(page: str) -> None:
    assert readme.rewritten(page) == (readme.ROOT / page).read_text(), "make readme"
    assert all(len(made()) > 200 for made in readme.PAGES[page].values())  # there is a table, or a sentence, to compare


def test_the_first_screen_stays_one_and_its_pages_exist() -> None:
    text = (readme.ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    pages = [
        (page, link)
        for page in ("README.md", "docs/README.md")
        for link in re.findall(r"\]\(([^)#:]+)", (readme.ROOT / page).read_text())
    ]
    assert len(pages) > 20 and all(((readme.ROOT / page).parent / link).exists() for page, link in pages)
    assert {path.name for path in (readme.ROOT / "docs").glob("*.md")} - {"README.md"} <= {
        link for page, link in pages if page == "docs/README.md"
    }


def test_every_link_of_every_page_leads_to_a_file_and_to_a_heading_of_it() -> None:
    def anchors(page: Path) -> set[str]:
        headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    pages = [readme.ROOT / "README.md", readme.ROOT / "CONTRIBUTING.md", *(readme.ROOT / "docs").glob("*.md")]
    links = [
        (page, *link.partition("#")[::2])
        for page in pages
        for link in re.findall(r"\]\(([^)\s:|]+)\)", page.read_text())
    ]
    dead = [
        (page.name, file, anchor)
        for page, file, anchor in links
        if not (target := (page.parent / file if file else page)).exists()
        or (anchor and target.suffix == ".md" and anchor not in anchors(target))
    ]
    assert len(links) > 60 and dead == []
