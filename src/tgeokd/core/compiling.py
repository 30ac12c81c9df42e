"""Compiled forward passes, and whether ``torch.compile`` works on this machine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tgeokd.utils.errors import InputError, one_line


def check_compiler(device: torch.device) -> None:
    """Compile next to nothing, so that a missing compiler is reported before training.

    Raises:
        InputError: where `torch.compile` does not work on this device: on the CPU it needs a C++ compiler.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # torch wraps what its compilers raise in many ways
        needs = "a C++ compiler (g++ or clang++, or what CXX names)" if device.type == "cpu" else "triton"
        raise InputError(f"compile=True needs {needs} for the device {device}: {one_line(error)}") from error


def compile_module(module: nn.Module) -> nn.Module:
    """The module with its forward and backward pass compiled; it shares the parameters.

    Dropout draws from the same generator as without compiling, so that the eager passes of a hypergradient use the same masks.
    """
    module_: nn.Module = torch.compile(module, options={"fallback_random": True})  # type: ignore[assignment]
    return module_


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """How to call a module. Hooks added to a compiled one take effect, which torch ignores for speed by default."""
    if uncompiled(module) is module:
        return module

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            return module(*args, **kwargs)

    return forward


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside one that ``torch.compile`` returned; any other module as it is."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module
