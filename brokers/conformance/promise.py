"""What a broken promise is, and how it is noticed."""

from __future__ import annotations


class PromiseBroken(AssertionError):
    """The broker does not keep what the port promises."""


def check(holds: object, otherwise: str) -> None:
    """Raise PromiseBroken with a text unless something holds."""
    if not holds:
        raise PromiseBroken(otherwise)


def equal(found: object, wanted: object, what: str) -> None:
    """Raise PromiseBroken unless what was found is what was promised."""
    if found != wanted:
        raise PromiseBroken(f"{what}: found {found!r}, promised {wanted!r}")
