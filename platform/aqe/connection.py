"""The Ray that a command works on: the cluster that RAY_ADDRESS names, or one of this machine."""

import logging
import os
from pathlib import Path

from aqe.errors import DependencyError
from aqe.exits import QUIET
from aqe.observe.lines import FOLLOWED, in_job


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), or start Ray on this machine.

    DependencyError where no such cluster answers.
    """
    import ray
    import ray.data  # It gives its loggers a level when it is imported.

    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": True}
    followed = {FOLLOWED: os.environ[FOLLOWED]} if FOLLOWED in os.environ else {}
    if not os.environ.get("RAY_ADDRESS"):
        variables = QUIET | followed
        source = Path(__file__).parents[1]
        # Where the package is installed, workers find it by themselves, and its neighbours must not come before
        # Python's own library.
        if source.name not in ("site-packages", "dist-packages"):
            variables["PYTHONPATH"] = str(source)
        options |= {
            "address": "local",
            # Ray Train asks the dashboard whether its controller lives, and says each second that nobody answers.
            "include_dashboard": True,
            "runtime_env": {"env_vars": variables},
        }
    elif followed and not in_job():
        # A job has them from its submission.
        options["runtime_env"] = {"env_vars": followed}
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise DependencyError(
            f"no Ray cluster answers where RAY_ADDRESS says ({os.environ.get('RAY_ADDRESS')}): "
            f"{str(error).rstrip('.')}. Start one, or unset RAY_ADDRESS and one is started on this machine."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
