"""One family of user errors: every message says what is wrong, where, and what to do.

The command line prints such an error as one line and exits with status 2; everything else is a defect of ours and
keeps its
traceback.
"""

from __future__ import annotations

from hftransfer.redaction import redact


class UserError(ValueError):
    """Something the user can mend.

    Args:
        what: What is wrong, in a few words.
        where: The file, field or module it is about.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        """The message on one line: `where: what; fix`, without the tokens that a path or an address may hold."""
        message = f"{self.where}: {self.what}" if self.where else self.what
        message = f"{message}; {self.fix}" if self.fix else message
        return redact(" ".join(message.split()))


class RecipeError(UserError):
    """A recipe that cannot be read or does not fit together."""


class DataError(UserError):
    """Data that cannot be read or used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or trusted."""


class AnatomyError(UserError):
    """A model whose structure is not understood."""


class StrategyError(UserError):
    """A strategy that cannot be applied to this model or task."""


class TrainingError(UserError):
    """A training that cannot start or go on."""


class CacheError(UserError):
    """A cache that another user could have written to."""


class HubError(UserError):
    """A model that cannot be pushed, pulled or verified."""
