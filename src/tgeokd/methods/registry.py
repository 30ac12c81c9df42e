"""The registry of methods alone: importing it imports nothing heavy."""

from typing import Any

from tgeokd.utils.registry import Registry

METHODS: Registry[Any] = Registry("method", "tgeokd.methods", group="tgeokd.methods", renamed={"ls": "lskd"})
DEFAULT_METHOD = "tgeo"
