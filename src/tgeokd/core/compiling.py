"""Compiled training passes: what `torch.compile` may touch, and whether it can work here at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tgeokd.utils.errors import InputError, one_line

__all__ = ["check_compiler", "compiled"]


def check_compiler(device: torch.device) -> None:
    """Compile next to nothing, so that a missing compiler is told before anything is trained.

    Raises:
        InputError: where `torch.compile` does not work on this device: on the CPU it needs a C++ compiler.
    """
    try:
        torch.compile(_plus_one)(torch.zeros(2, device=device))
    except Exception as error:  # torch wraps what its compilers raise in many ways
        needs = "a C++ compiler (g++ or clang++, or what CXX names)" if device.type == "cpu" else "triton"
        raise InputError(f"compile=True needs {needs} for the device {device}: {one_line(error)}") from error


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module's forward and backward pass compiled; the module itself stays as it is and shares its parameters.

    Dropout draws from the same generator as without compiling, so that the eager passes of a hypergradient meet the same
    masks, and hooks that come and go are heeded, which torch leaves out for speed unless told.
    """
    run: Callable[..., Any] = torch.compile(module, options={"fallback_random": True})

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            return run(*args, **kwargs)

    return forward


def _plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1
