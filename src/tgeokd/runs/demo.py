"""The demo on real handwritten digits: every method, clean and noisy labels, five seeds."""

from tgeokd.runs.plan import parse_method
from tgeokd.runs.results import DataVariant

METHODS = "ce kd:alpha=0.1 kd:alpha=0.3 kd:alpha=0.5 kd:alpha=0.7 kd:alpha=0.9 anl ada wls rw gce posterior tgeo"
OPTIONS = "tgeo:outer=holdout tgeo:paper=true"
CONTROLS = (
    "ce@train+val kd:alpha=0.5@train+val gce@train+val"  # the value of the validation samples as plain training samples
)

DEMO_ROWS = [parse_method(text) for text in f"{METHODS} {OPTIONS} {CONTROLS}".split()]
DEMO_VARIANTS = [DataVariant("clean", {"noise": 0.0}), DataVariant("noise 30 %", {"noise": 0.3})]
