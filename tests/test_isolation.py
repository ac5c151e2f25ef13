"""A fresh process gives its value or says why not, whatever happens in it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llamaquant.errors import ConfigError, TrialError
from llamaquant.isolation import in_fresh_process

ROOT = Path(__file__).resolve().parent.parent


def double(x: int, progress: Any) -> int:
    progress("half", 0.5)
    print("chatter of a vendor library")
    os.write(2, b"chatter from C\n")
    return 2 * x


def refuse(progress: Any) -> None:
    raise ConfigError("x must be 1, got 2: use 1")


def vendor_exit(progress: Any) -> None:
    sys.exit(1)


def segfault(progress: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hard_exit(progress: Any) -> None:
    os._exit(3)


def hang(progress: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def out_of_memory(progress: Any) -> None:
    raise MemoryError("cannot allocate")


def odd_error(progress: Any) -> None:
    raise ZeroDivisionError("line one\nline two")


def hang_with_child(pid_file: str, progress: Any) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(1000)


def test_value_progress_and_log(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    log = tmp_path / "logs" / "a.log"
    assert in_fresh_process(double, 21, log=log, on_progress=lambda *args: seen.append(args)) == 42
    assert seen == [("half", 0.5)]
    assert log.read_text().splitlines() == ["chatter of a vendor library", "chatter from C"]


@pytest.mark.parametrize("function,kind,part", [
    (refuse, ConfigError, "x must be 1, got 2: use 1"), (vendor_exit, TrialError, "SystemExit"), (segfault, TrialError, "SIGSEGV"),
    (hard_exit, TrialError, "exit code 3"), (out_of_memory, TrialError, "must fit in memory"), (odd_error, TrialError, "ZeroDivisionError"),
])
def test_every_death_has_its_reason(function: Any, kind: type[Exception], part: str, tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        in_fresh_process(function, log=tmp_path / "log", timeout_s=120)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_hang_ends_at_its_limit(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TrialError, match="more than 2 s"):
        in_fresh_process(hang, log=tmp_path / "log", timeout_s=2)
    assert time.monotonic() - started < 30


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_and_what_they_started_die_with_a_killed_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pids"
    code = (f"from tests.test_isolation import *; in_fresh_process(hang_with_child, {str(pid_file)!r}, "
            f"log=Path({str(tmp_path / 'log')!r}))")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 90
    while not (pid_file.exists() and pid_file.read_text().count(" ")) and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = [int(word) for word in pid_file.read_text().split()]
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
