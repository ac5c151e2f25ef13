"""Errors of llamaquant. Every message is one line: the rule, the value received, the cure."""


class LlamaQuantError(Exception):
    """Base of every error that llamaquant raises on purpose; entry points turn it into one line and exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigError(LlamaQuantError):
    """A parameter, or a combination of parameters, that no run can have."""


class DataError(LlamaQuantError):
    """A data set, model folder or prediction file that is missing, malformed or inconsistent."""


class BackendError(LlamaQuantError):
    """A library, kernel, device or service that the request needs is not there or refused the work."""


class TrialError(LlamaQuantError):
    """One experiment ended without a result: out of memory, a crash, a time limit, NaN outputs."""
