"""The README's Python blocks run as they stand, and none is longer than eight statements."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("data", ["watch", "digits3", "emoji"])
def test_comparisons_are_those_on_file(data: str) -> None:
    """Every row that is printed stands in the table that compare wrote."""
    docs = README.parent / "docs"
    page, block = (README, "compare") if data == "watch" else (docs / "results.md", data)
    shown = page.read_text().split(f"<!-- {block}:begin -->\n")[1].split(f"\n<!-- {block}:end -->")[0]
    written = (docs / "results" / f"all-methods-{data}.md").read_text().splitlines()
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert rows == [line for line in written if line.startswith("|")]
    assert len(rows) > 3


def test_readme_shows_the_three_uses() -> None:
    text = "\n".join(BLOCKS)
    for name in ("igm.SAM", "igm.ActivationCovariance", "igm.flat_projectors", "igm.match_layers"):
        assert name in text


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: ast.unparse(ast.parse(block).body[1])[:40])
def test_readme_block_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in block.splitlines() if line.strip()]) <= 9  # the import and eight lines
    exec(compile(block, str(README), "exec"), {})
    capsys.readouterr()
