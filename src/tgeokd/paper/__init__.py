"""The analyses of the TGeo-KD paper (Hu et al., ICLR 2024) and of its public reviews, one file per analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgeokd.utils.registry import Registry

if TYPE_CHECKING:
    from tgeokd.paper.base import Analysis

__all__ = ["ANALYSES"]

ANALYSES: Registry[type[Analysis]] = Registry("analysis", "tgeokd.paper", group="tgeokd.analyses")
