"""Every error a user can meet.

AqeError
├── ConfigError        the configuration cannot work: unknown key, wrong value, pieces that do not fit together
├── InputError         a file or model that the user named is missing, unreadable or breaks its contract
├── ArtifactError      something made earlier is incomplete, corrupt or does not fit what is asked of it
├── DeadLetterError    more rows than allowed could not be processed
├── StorageError       the storage refused a write again and again
└── DependencyError    a program or package that this machine needs is not there

A message says what is wrong, where, why, and what to do. Jobs print it without a traceback and exit with 2.
"""


class AqeError(Exception):
    """Base of all errors that are the user's to mend."""


class ConfigError(AqeError):
    """The configuration cannot work. Raised before any compute is spent."""


class InputError(AqeError):
    """A file or model that the user named is missing, unreadable or breaks its contract."""


class ArtifactError(AqeError):
    """Something made earlier is incomplete, corrupt, or does not fit what is asked of it."""


class DeadLetterError(AqeError):
    """More rows than `max_dead_share` could not be processed; what was made is kept for a rerun."""


class StorageError(AqeError):
    """The storage refused a write again and again: full, over a quota, or gone. What was made is kept for a rerun."""


class DependencyError(AqeError):
    """A program or package that this machine needs is not there."""
