"""Stepping a learning-rate scheduler."""

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tgeokd.utils.errors import InputError


def step_scheduler(scheduler: LRScheduler | ReduceLROnPlateau, validation_loss: float | None) -> None:
    """Step a scheduler; ``ReduceLROnPlateau`` with the validation loss."""
    if isinstance(scheduler, ReduceLROnPlateau):
        if validation_loss is None:
            raise InputError("ReduceLROnPlateau monitors the validation loss: give a val_loader")
        scheduler.step(validation_loss)
    else:
        scheduler.step()
