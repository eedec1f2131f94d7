"""What was chosen on dev, and among what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """What was tried on dev: name -> MRR, and the best of it (the first of equals)."""

    tried: Mapping[str, float]
    best: str

    def as_dict(self) -> dict[str, Any]:
        return {"chosen": self.best, "dev_mrr": dict(self.tried)}
