"""Makes ``surrogate_cases`` (losses of which the truth is known) importable, whatever the import mode."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "surrogate"))
