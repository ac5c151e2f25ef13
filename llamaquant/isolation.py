"""Run a function in a process of its own: whatever it does to memory, signals or threads ends with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import llamaquant.errors
from llamaquant.environment import has_nvidia_driver
from llamaquant.errors import LlamaQuantError, TrialError

PRELOAD = ["torch", "transformers", "lm_eval.evaluator", "lm_eval.models.huggingface"]
"""Imported once per study and inherited by every child: together about 10 s on two cores."""

Progress = Callable[[str, float], None]
"""Called with what is under way and the finished share in 0..1."""


def in_fresh_process(function: Callable[..., Any], *args: Any, log: Path, timeout_s: float | None = None,
                     on_progress: Progress | None = None) -> Any:
    """`function(*args, progress)` in a fresh process; its value, or its error.

    Standard output and error of the child are appended to `log`. The child dies with this process.

    Raises:
        LlamaQuantError: what the child raised, of the same class.
        TrialError: the child ran out of memory, crashed, raised anything else, or outlived `timeout_s` seconds.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_child, args=(sender, str(log), function, args), daemon=False)
    process.start()
    sender.close()
    try:
        return _await_result(process, receiver, timeout_s, on_progress)
    finally:
        _end(process)
        receiver.close()


def _context() -> Any:
    """A fork server with the heavy imports done, where no CUDA driver could be initialised in it; else spawn."""
    if sys.platform != "linux" or has_nvidia_driver():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _await_result(process: Any, receiver: Connection, timeout_s: float | None, on_progress: Progress | None) -> Any:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not receiver.poll(left):
            raise TrialError(f"a step must end within its time limit, got more than {timeout_s:g} s: raise timeout or lower limit")
        try:
            kind, payload = receiver.recv()
        except EOFError:
            process.join(10)
            raise TrialError(f"a step must end with a result, got {_death(process.exitcode)}: see the run's log") from None
        if kind == "progress":
            if on_progress is not None:
                on_progress(*payload)
        elif kind == "value":
            return payload
        else:
            name, message = payload
            error = getattr(llamaquant.errors, name, TrialError)
            raise error(message)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"signal {name}" + (" (killed from outside, or out of memory)" if name == "SIGKILL" else "")
    return f"exit code {exitcode}"


def _end(process: Any) -> None:
    """Leave nothing behind: the child and whatever it started share a process group of their own."""
    process.join(5 if process.exitcode is None and not sys.exc_info()[0] else 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join(10)


def _child(sender: Connection, log: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    _die_with_parent()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    stream = open(log, "a", buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as long as the process
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    try:
        value = function(*args, lambda what, share: sender.send(("progress", (what, share))))
        sender.send(("value", value))
    except BaseException as error:  # vendor libraries call exit(), and the parent must learn the reason
        traceback.print_exc()
        with contextlib.suppress(OSError):
            sender.send(("error", _described(error)))
    stream.flush()
    sender.close()


def _described(error: BaseException) -> tuple[str, str]:
    """Class name (of llamaquant.errors) and message that say to the parent what happened."""
    if isinstance(error, LlamaQuantError):
        return type(error).__name__, str(error)
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return "TrialError", f"a step must fit in memory, got {type(error).__name__} ({text}): use a smaller batch or model"
    return "TrialError", f"a step must end with a result, got {type(error).__name__} ({text}): see the run's log"


def _die_with_parent() -> None:
    """Watch the process that asked for this one and end this whole process group when it goes.

    Neither the fork server nor prctl's parent-death signal does that: the server lives as long as any child.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
