"""What :meth:`tgeokd.Distiller.fit` checks before it trains, and the loader that it trains on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from tgeokd.core.validation import check_count
from tgeokd.data.loaders import union_loader
from tgeokd.methods import Method
from tgeokd.training.batches import length_of
from tgeokd.utils.errors import InputError

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller

logger = logging.getLogger(__name__)

Loader = Iterable[Any]


def check_fit(
    distiller: Distiller,
    val_loader: Loader | None,
    *,
    epochs: int,
    seed: int,
    patience: int | None,
    out: str | Path | None,
    resume: bool | str,
) -> None:
    """Refuse arguments that do not fit each other."""
    check_count(0, seed=seed)
    check_count(1, epochs=epochs, patience=patience)
    if resume not in (True, False, "best"):
        raise InputError(f"resume must be True, False or 'best', not {resume!r}")
    if resume and out is None:
        raise InputError("resume needs the folder of the run: out=...")
    if distiller.on_divergence == "rollback" and out is None:
        raise InputError("on_divergence='rollback' returns to a checkpoint, which needs the folder of a run: out=...")
    if patience is not None or isinstance(distiller.scheduler, ReduceLROnPlateau):
        monitors = "early stopping and ReduceLROnPlateau monitor the validation loss"
        if val_loader is None:
            raise InputError(f"{monitors} and need a val_loader")
        if distiller.method.outer == "union":
            raise InputError(
                f"{monitors}, and outer='union' trains on the validation samples: give method {distiller.method.name!r} "
                "outer='holdout'"
            )


def training_loader(method: Method, train_loader: Loader, val_loader: Loader | None) -> Loader:
    """The loader that the student trains on: with ``outer="union"`` it yields the validation samples too."""
    if length_of(train_loader) == 0:
        raise InputError("the training loader is empty")
    if method.outer in ("holdout", "union") and val_loader is None:
        raise InputError(f"method {method.name!r} with outer={method.outer!r} needs a val_loader")
    if method.outer != "union" or val_loader is None:
        return train_loader
    logger.info(
        "outer='union': the student trains on the validation samples too, so its metrics on them do not measure how good it is"
    )
    return union_loader(train_loader, val_loader, numbered=method.needs_label_noise)
