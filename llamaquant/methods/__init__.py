"""The table of quantization methods. Adding one: a file in this folder and a line here."""

from __future__ import annotations

import difflib
import importlib
from enum import StrEnum
from functools import cache
from typing import Self

from llamaquant.errors import ConfigError
from llamaquant.methods.base import Method


class QuantMethod(StrEnum):
    """Name in the API = value on the command line, `file:class` below this folder (imported at first use)."""

    where: str

    def __new__(cls, value: str, where: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.where = where
        return member

    NONE = "none", "none:Unquantized"
    BITSANDBYTES_8BIT = "bnb_8bit", "bnb:Int8"
    BITSANDBYTES_4BIT = "bnb_4bit", "bnb:FourBit"
    GPTQ = "gptq", "gptq:GPTQ"
    AWQ = "awq", "awq:AWQ"
    RTN = "rtn", "rtn:RTN"
    AUTOROUND = "autoround", "autoround:AutoRound"


def parse_method(name: str) -> QuantMethod:
    """The method of that name; a typo answers with near matches."""
    try:
        return QuantMethod(name)  # type: ignore[call-arg]  # looks up by value
    except ValueError:
        near = difflib.get_close_matches(str(name), list(QuantMethod), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "pick one of them"
        raise ConfigError(f"method must be one of {', '.join(QuantMethod)}, got {name!r}: {hint}") from None


@cache
def get_method(method: QuantMethod) -> Method:
    """The implementation. Importing it touches no vendor library; using it does."""
    module, _, name = method.where.partition(":")
    implementation = getattr(importlib.import_module(f"llamaquant.methods.{module}"), name)()
    assert isinstance(implementation, Method)
    return implementation
