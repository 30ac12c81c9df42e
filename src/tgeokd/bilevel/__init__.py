"""The bilevel part: how the held-out loss after a training step answers to the fusion ratios of that step."""

from tgeokd.bilevel.lookahead import Hypergradient, Lookahead, ratio_gradient
from tgeokd.bilevel.outer_direction import OuterDirection

__all__ = ["Hypergradient", "Lookahead", "OuterDirection", "ratio_gradient"]
