"""Ray's provider that starts raylets in place of machines, each with a directory of its own, as machines have.

Ray's own has all of them share the head's: a node that joins unpacks the job's package there again, and the workers of
the others lose the directory that they work in.
"""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray has no types here.
    """Takes `directory`, below which the nodes' lie, beside the settings of Ray's own."""

    def _create_node_with_resources_and_labels(self, *args: Any) -> None:
        with self.lock:
            own = Path(self.provider_config["directory"]) / f"node-{1 + self._next_node_id}"
            own.mkdir()
            with patch("ray._private.parameter.RayParams", partial(RayParams, temp_dir=str(own))):
                super()._create_node_with_resources_and_labels(*args)
