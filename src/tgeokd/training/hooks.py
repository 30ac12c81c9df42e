"""Hooks around an optimizer's step."""

import weakref
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class _Observer(Protocol):
    def before_update(self) -> None: ...
    def after_update(self) -> None: ...


def add_step_hooks(optimizer: Optimizer, observer: _Observer) -> list[RemovableHandle]:
    """Call an observer before and after every step of an optimizer, which does not keep it alive.

    A closure that computes the gradients inside ``optimizer.step(closure)`` is followed by ``before_update``.
    """
    reference = weakref.ref(observer)

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        observer = reference()
        if observer is None:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            observer.before_update()
            return None

        def then_record() -> Any:
            loss = closure()
            observer.before_update()
            return loss

        if len(args) > 1:
            return (args[0], then_record, *args[2:]), kwargs
        return args, {**kwargs, "closure": then_record}

    def after(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        observer = reference()
        if observer is not None:
            observer.after_update()

    return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
