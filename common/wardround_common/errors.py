"""The error tree. Each error has a stable code and two messages.

::

    WardroundError
    ├── ConfigError      a federation or site file is wrong (exit status 2)
    ├── DataError        the site's data cannot be used as declared (exit status 2)
    ├── BackboneError    a backbone is missing, corrupt or not the pinned one (exit status 2)
    ├── WireError        bytes that came from elsewhere do not have the promised form
    ├── EnrolmentError   a site was not let in, or not given new keys (exit status 1)
    ├── RefusedError     an update was refused at admission; the run goes on without it
    ├── RoundError       a round or a run cannot be completed (exit status 1)
    └── IntegrityError   stored state does not match its digest (exit status 1)

``str(error)`` is for the local operator and may name files, columns and values. ``public_message``
is fixed text chosen by the code and is the only part that may cross the wire or enter a log: it
never contains a path, an identifier or a datum.
"""

from typing import ClassVar


class WardroundError(Exception):
    """Base of all expected failures.

    Args:
        message: for the local operator: what is wrong and what to do.
        code: a stable lower-case code such as ``missing_column``.
    """

    exit_status: ClassVar[int] = 1
    public: ClassVar[str] = "The operation failed."

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def public_message(self) -> str:
        """What may leave this process: the class's fixed sentence and the code."""
        return f"{self.public} [{self.code}]"


class ConfigError(WardroundError):
    """A federation or site file is malformed or asks for something impossible."""

    exit_status = 2
    public = "The configuration is not valid."


class DataError(WardroundError):
    """The data at a site is missing, corrupt or not as the federation file declares."""

    exit_status = 2
    public = "The site's data cannot be used as declared."


class BackboneError(WardroundError):
    """A backbone is missing, corrupt, or its digest is not the pinned one."""

    exit_status = 2
    public = "The backbone cannot be used."


class WireError(WardroundError):
    """Received bytes do not have the form that the manifest promises."""

    public = "The message is malformed."


class EnrolmentError(WardroundError):
    """A site was not let in, or not given new keys."""

    public = "The enrolment was refused."


class RefusedError(WardroundError):
    """An update was refused at admission."""

    public = "The update was refused."


class RoundError(WardroundError):
    """A round was abandoned for good, or the run cannot go on."""

    public = "The run could not be completed."


class IntegrityError(WardroundError):
    """Stored state does not match its digest or its chain."""

    public = "Stored state is damaged."
