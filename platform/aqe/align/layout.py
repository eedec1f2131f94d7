"""What lies in the directory of a training stage, and when its checkpoints have done their work."""

from pathlib import Path

#: What training measured. Written when the model is there, before the checkpoints are removed.
STATS = "stats.json"
#: What an interrupted training goes on from, with all that it reads.
CHECKPOINTS = "checkpoints"


def trained(out: Path) -> bool:
    """Whether training has ended: from then on nothing reads the checkpoints."""
    return (out / STATS).exists()
