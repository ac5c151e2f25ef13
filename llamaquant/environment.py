"""What a figure depends on besides the config: commit, hardware, driver, library versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "bitsandbytes", "gptqmodel", "auto-round", "optimum", "lm-eval", "accelerate", "mlflow", "optuna",
            "numpy", "tokenizers", "safetensors", "datasets")


def version_of(package: str) -> str:
    """Installed version of a distribution, or `absent`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def versions() -> dict[str, str]:
    return {name: version_of(name) for name in PACKAGES}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def git_commit() -> str:
    """Commit of the code that runs; LLAMAQUANT_COMMIT where it was copied without its repository, else `unknown`."""
    return _git("rev-parse", "HEAD") or os.environ.get("LLAMAQUANT_COMMIT") or "unknown"


def git_dirty() -> bool:
    """True where tracked files differ from that commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def nvidia_smi(*fields: str) -> list[str]:
    """One comma-separated line per GPU; empty where there is no driver."""
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def has_nvidia_driver() -> bool:
    """Whether a CUDA device could be there; asks the file system and nvidia-smi, not torch. /dev/dxg is WSL's."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg") or bool(nvidia_smi("index"))


def describe() -> dict[str, str]:
    """Flat facts for run tags; no user name, host name, path or environment variable is among them."""
    gpus = nvidia_smi("name", "driver_version", "memory.total")
    facts = {
        "git.commit": git_commit(), "git.dirty": str(git_dirty()).lower(),
        "hardware.cpu": cpu_name(), "hardware.cpu_count": str(os.cpu_count()),
        "hardware.gpu": "; ".join(gpus) or "none", "python": platform.python_version(), "os": platform.system(),
    }
    return facts | {f"version.{name}": version for name, version in versions().items()}
