# Owns: that the figures of the README and of the table of losses are those of the checked-in CSV files.
# Must not know: the figures.
from __future__ import annotations

import pytest
from bench import readme


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_tables_are_what_the_csv_files_say(page: str) -> None:
    assert readme.rewritten(page) == (readme.ROOT / page).read_text(), "make readme"
    assert all(len(made()) > 200 for made in readme.PAGES[page].values())  # there is a table, or a sentence, to compare
