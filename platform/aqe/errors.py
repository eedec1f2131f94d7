"""Every error a user can meet.

AqeError
├── ConfigError        2  the configuration cannot work: unknown key, wrong value, pieces that do not fit together
├── InputError         2  a file or model that the user named is missing, or cannot be used
│   └── DataError      3  what stands in the user's files breaks its contract
├── DeadLetterError    3  more rows than allowed could not be processed
├── ArtifactError      4  something made earlier is incomplete, corrupt or does not fit what is asked of it
├── StorageError       4  the storage refused a write again and again
└── DependencyError    4  a program, package or node that a run needs is not there

A message says what is wrong, where, why, and what to do. Commands and jobs print it without a traceback and end with
the number: 2 is the user's to mend, 3 the data's, 4 the machine's. 0 is success, 130 an interrupt, 1 a fault of ours.
"""

from collections.abc import Mapping
from typing import ClassVar


class AqeError(Exception):
    """Base of all errors that are the user's to mend."""

    exit_code: ClassVar[int] = 2


class ConfigError(AqeError):
    """The configuration cannot work. Raised before any compute is spent."""


class InputError(AqeError):
    """A file or model that the user named is missing, or cannot be used."""


class DataError(InputError):
    """What stands in the user's files breaks its contract: columns, rows, judgements."""

    exit_code = 3


class ArtifactError(AqeError):
    """Something made earlier is incomplete, corrupt, or does not fit what is asked of it."""

    exit_code = 4


class DeadLetterError(AqeError):
    """More rows than `max_dead_share` could not be processed; what was made is kept for a rerun."""

    exit_code = 3


class StorageError(AqeError):
    """The storage refused a write again and again: full, over a quota, or gone. What was made is kept for a rerun."""

    exit_code = 4


class DependencyError(AqeError):
    """A program, a package or a node of the cluster that a run needs is not there."""

    exit_code = 4


#: Every kind by its name.
KINDS: Mapping[str, type[AqeError]] = {
    kind.__name__: kind
    for kind in (ConfigError, InputError, DataError, ArtifactError, DeadLetterError, StorageError, DependencyError)
}
