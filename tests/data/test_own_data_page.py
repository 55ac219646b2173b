"""``docs/own-data.md``, word by word: its blocks are run in their order, and it prints what it promises."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from igm_fast import evaluate, train
from igm_fast.data import command

PAGE = Path(__file__).resolve().parents[2] / "docs/own-data.md"
COMMANDS = {"igm_fast.data": command.main, "igm_fast.train": train.main, "igm_fast.evaluate": evaluate.main}


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "sh", "text", "yaml", "sh", "python", "python"]
    printed, names = "", {"__name__": "page"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
        elif kind == "yaml":
            Path("own/data.yaml").write_text(block, encoding="utf-8")
        elif kind == "text":
            for line in block.splitlines():
                assert line in printed.splitlines()
            continue
        else:
            for words in map(shlex.split, block.splitlines()):
                assert words[:2] == ["python", "-m"]
                assert COMMANDS[words[2]](words[3:]) == 0
        printed = capsys.readouterr().out
    assert Path("runs/own/report.html").is_file()
    assert Path("runs/toy/report.html").is_file()
    assert "runs/toy/report.html" in printed
