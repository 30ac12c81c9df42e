"""Losses: the public import path of :mod:`tgeokd.core.losses`."""

from tgeokd.core.losses import (
    decoupled_kd,
    fuse,
    gt_grad,
    gt_loss,
    kd_grad,
    kd_loss,
    logits_from_probs,
    regression_loss,
    soft_ce_loss,
    standardise,
)

__all__ = [
    "decoupled_kd",
    "fuse",
    "gt_grad",
    "gt_loss",
    "kd_grad",
    "kd_loss",
    "logits_from_probs",
    "regression_loss",
    "soft_ce_loss",
    "standardise",
]
