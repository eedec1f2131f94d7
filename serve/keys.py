"""API keys: read from a file and the environment, kept as digests, compared in constant time, never logged."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from aqe.errors import ConfigError, InputError

VARIABLE = "AQE_API_KEYS"
SHORTEST = 16


class Keys:
    """Known keys. `name` gives the caller of a request a name that reveals nothing."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name(self, key: str) -> str | None:
        """Eight hex digits for a known key, None for any other."""
        asked = _digest(key)
        # All are compared, so that the time tells nothing of which one is near.
        equal = [hmac.compare_digest(asked, known) for known in self._digests]
        return asked.hex()[:8] if any(equal) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def load_keys(file: Path | None) -> Keys:
    """Keys of the file (one a line, `#` starts a comment) and of AQE_API_KEYS (separated by commas).

    Raises InputError when the file cannot be read or holds none, ConfigError for a key that can be guessed.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"keys_file {file} cannot be read: {error}. Give a text file with one key a line."
            ) from None
        of_file = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not of_file:
            raise InputError(f"keys_file {file} holds no key. Write one a line, or leave keys_file out.")
        keys += of_file
    if any(len(key) < SHORTEST for key in keys):
        raise ConfigError(
            f"an API key has fewer than {SHORTEST} characters and can be guessed. Make one with: openssl rand -hex 32"
        )
    return Keys(keys)


def check_exposure(host: str, keys: Keys) -> None:
    """ConfigError when the service would listen beyond this machine and anybody could use it."""
    if host not in ("127.0.0.1", "localhost", "::1") and not keys:
        raise ConfigError(
            f"the HTTP address is {host}, which other machines can reach, and there is no API key. Set keys_file in "
            f"the application's args (or {VARIABLE} in the replicas' environment), or listen on 127.0.0.1."
        )
