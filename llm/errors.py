"""Every error that Trainyard raises on purpose.

    TrainyardError
    ├── RecipeError       the recipe or an override is wrong                    fix the recipe
    ├── SourceError       a source of text can't be read                        retried: time may heal it
    ├── DataError         the data can't carry the run (empty, too dirty)       fix the data or a threshold
    ├── ArtifactError     the store is damaged, read-only or full               free or repair the store
    ├── DivergenceError   training left the finite numbers                      change the optimizer settings
    ├── StoppedError      training was asked to stop, and has its checkpoint    the same command continues
    ├── CapacityError     the machine is too small for the recipe               a smaller size or a larger machine
    ├── DependencyError   a library or a service is missing or too old          `trainyard doctor`
    └── PromotionError    the registry can't decide                             see the message

One message, three parts: the fact, the value, the remedy.
"""

from __future__ import annotations


class TrainyardError(Exception):
    """Base of every error that Trainyard raises on purpose.

    Example:
        >>> raise DataError("corpus is empty", value="0 documents kept", remedy="lower clean.min_characters")
        Traceback (most recent call last):
        llm.errors.DataError: corpus is empty: 0 documents kept; lower clean.min_characters
    """

    transient = False  # whether time may heal it, so that a retry makes sense

    def __init__(self, fact: str, *, value: object = None, remedy: str = "", transient: bool | None = None) -> None:
        self.fact, self.value, self.remedy = fact, value, remedy
        if transient is not None:
            self.transient = transient
        super().__init__(fact)

    def __str__(self) -> str:
        message = self.fact if self.value is None else f"{self.fact}: {self.value}"
        return f"{message}; {self.remedy}" if self.remedy else message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.fact, self.value, self.remedy, self.transient)


def _rebuild(kind: type[TrainyardError], fact: str, value: object, remedy: str, transient: bool) -> TrainyardError:
    return kind(fact, value=value, remedy=remedy, transient=transient)


class RecipeError(TrainyardError):
    """The recipe or an override is wrong."""


class SourceError(TrainyardError):
    """A source of text can't be read just now; time may heal it."""

    transient = True


class DataError(TrainyardError):
    """The data can't carry the run: empty, too dirty, too small."""


class ArtifactError(TrainyardError):
    """The store is damaged, read-only or full."""


class DivergenceError(TrainyardError):
    """Training left the finite numbers, or a result failed its gate."""


class StoppedError(TrainyardError):
    """Training was asked to stop; it lost no step, and the same command continues."""


class CapacityError(TrainyardError):
    """The machine is too small for what the recipe asks."""


class DependencyError(TrainyardError):
    """A library or a service is missing or too old."""


class PromotionError(TrainyardError):
    """The registry can't decide on a candidate."""
