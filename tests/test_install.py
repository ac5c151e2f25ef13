"""The installer on machines that lack a compiler or a network: one line with the cure, and what can work goes on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOOLS = ("bash", "grep", "sed", "mktemp", "cat", "rm", "tail", "cp")
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  -c*) echo "$HEADER";;
  *"pip install"*) [ -z "$PIP_FAILS" ] || { echo "no route to the index" >&2; exit 1; }; for last; do :; done; cp "$last" "$SEEN";;
esac
"""


def install(folder: Path, *, compiler: bool, header: bool, pip_fails: bool = False) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the installer against a fake Python; the result, and the requirements that pip was given."""
    tools = folder / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")
    if compiler:
        (tools / "gcc").symlink_to("/bin/true")
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (folder / "Python.h").write_text("")
    environment = {"PATH": str(tools), "HEADER": str(folder / ("Python.h" if header else "none.h")), "SEEN": str(folder / "seen"),
                   "PIP_FAILS": "1" if pip_fails else "", "TMPDIR": os.fspath(folder)}
    done = subprocess.run([str(tools / "bash"), "tools/install.sh", str(folder / "venv"), "requirements.txt"], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=60)
    seen = folder / "seen"
    return done, seen.read_text() if seen.exists() else ""


def test_all_is_there(tmp_path: Path) -> None:
    done, seen = install(tmp_path, compiler=True, header=True)
    assert done.returncode == 0 and done.stderr == "" and "gptqmodel==" in seen and "bitsandbytes==" in seen


@pytest.mark.parametrize("compiler,header,part", [
    (False, True, "C compiler (cure: apt install gcc)"), (True, False, "Python headers (cure: apt install python3-dev"),
    (False, False, "C compiler"),
])
def test_what_is_missing_is_named_and_bitsandbytes_goes_on(compiler: bool, header: bool, part: str, tmp_path: Path) -> None:
    done, seen = install(tmp_path, compiler=compiler, header=header)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and part in done.stderr
    assert "gptqmodel==" not in seen and "bitsandbytes==" in seen and "torch==" in seen


def test_a_failing_pip_is_an_error(tmp_path: Path) -> None:
    done, _ = install(tmp_path, compiler=True, header=True, pip_fails=True)
    assert done.returncode == 2 and "no route to the index" in done.stderr and done.stderr.splitlines()[-1].startswith("error: ")


def test_all_pins_are_exact() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text("utf-8").splitlines():
            assert line.startswith(("#", "-r ")) or line.count("==") == 1, line
