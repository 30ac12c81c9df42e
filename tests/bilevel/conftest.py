"""Makes `students.py`, the helpers of these tests, importable whatever pytest's import mode and working directory."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
