"""`aqe index` as a job: `ray job submit ... -- python jobs/build_index.py --config ... --base-dir ...`."""

import sys
from pathlib import Path

# Also where nobody has set PYTHONPATH.
sys.path.append(str(Path(__file__).resolve().parents[1] / "platform"))

from aqe.cli import index, main

if __name__ == "__main__":
    main(index)
