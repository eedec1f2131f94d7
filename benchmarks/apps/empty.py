"""A Serve deployment that does nothing: what Ray Serve alone costs a request (benchmarks/serve.py)."""

from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(max_ongoing_requests=1024)
@serve.ingress(api)
class Empty:
    """Answers."""

    @api.post("/v1/expand")
    async def expand(self) -> dict[str, str]:
        """Nothing."""
        return {}


app = Empty.bind()
