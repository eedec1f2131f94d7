"""Serve the newest aligned model of this machine, or the bundled base model, on http://127.0.0.1:8000.

usage: python -m cluster.local.serve [MODEL]
"""

import subprocess
import sys
from pathlib import Path

from cluster.local.ray_head import ray_head

ROOT = Path(__file__).parents[2]


def newest_model() -> str:
    """The model that was aligned last below runs/, RSFT+DPO before the others."""
    found = sorted(
        ROOT.glob("runs/*/align_*/manifest.json"), key=lambda p: ("align_rsft_dpo" in str(p), p.stat().st_mtime)
    )
    return str(found[-1].parent / "model") if found else "package:smollm2-135m-instruct"


def main() -> int:
    """Exit code of `serve run`."""
    model = sys.argv[1] if len(sys.argv) > 1 else newest_model()
    print(f"Serving {model} on http://127.0.0.1:8000 (try /docs, POST /v1/expand); Ctrl-C stops it.", flush=True)
    with ray_head() as head:
        # `serve run` joins this Ray; the workers find the code through the path that it was given.
        env = {**head.env, "RAY_ADDRESS": head.gcs, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        serve = str(Path(sys.executable).parent / "serve")
        process = subprocess.Popen([serve, "run", "serve.app:build", f"model={model}"], cwd=head.directory, env=env)
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
