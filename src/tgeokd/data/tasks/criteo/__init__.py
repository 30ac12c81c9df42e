"""`criteo`: click prediction from 13 integer and 26 categorical columns, streamed from files larger than memory."""

from tgeokd.data.tasks.criteo.encoder import CriteoEncoder
from tgeokd.data.tasks.criteo.task import criteo

__all__ = ["CriteoEncoder", "criteo"]
