"""Every test that docs/reference/v2.md names for a client exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/v2.md").read_text("utf-8")


def test_every_client_in_the_table_has_a_test() -> None:
    table = PAGE.partition("## Clients\n")[2].partition("\n\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests/integration" / file).read_text("utf-8"), (file, name)
