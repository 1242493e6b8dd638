"""The shell is offered commands, options, jobs and the names inside a file."""

import subprocess
import sys
from pathlib import Path

import pytest

from launching import environment


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tun", "plain,tune"),
        ("tune dig", "plain,digits"),
        ("tune --bud", "plain,--budget"),
        ("tune mine.py:j", "plain,mine.py:job"),
        ("tune mine.py:m", "plain,mine.py:make"),
    ],
)
def test_what_is_offered(tmp_path: Path, typed: str, offered: str) -> None:
    text = "raise SystemExit\n_j = job = 1\nlr = 2\ndef make(): ...\ndef my(x): ...\n"
    (tmp_path / "mine.py").write_text(text)
    words = f"rightbatch {typed}"
    asked = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_RIGHTBATCH_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rightbatch.cli.main import cli; cli(prog_name='rightbatch')",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment() | asked,
    )
    assert done.stdout.splitlines() == [
        offered,
        *(["file,dig"] if "dig" in typed else []),
    ]
