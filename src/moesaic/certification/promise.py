"""A promised function is kept, or nothing is published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesaic.errors import CertificateError

PROMISE = 1e-4
"""A kept function may move a logit by this share of the largest one: float32 rounding over many layers, no more."""
ROUNDINGS = {"BF16": 16 * 2**-8, "F16": 16 * 2**-11}
"""The same where computed weights (cast, scaled, folded) were rounded to half precision when they were stored.

Casting all of SmolLM2-135M moves a logit by 1.9 of these units of rounding in BF16, by 2.9 in F16.
"""


def broken(record: Mapping[str, Any], what: str, difference: float, largest: float) -> str:
    """Return how a conversion breaks its method's promise, or an empty string.

    Args:
        record: its moesaic.json. what: the compared output. difference: the largest in it. largest: value of it.
    """
    limit = ROUNDINGS.get(record.get("rounds_to") or "", PROMISE) * max(largest, 1.0)
    if not record["preserves_function"] or difference <= limit:
        return ""
    return (
        f"{record['experts']['method']}: the converted model must compute what the dense one does, as this method "
        f"promises. Got a difference of {difference:.3g} in {what} (allowed {limit:.3g})."
    )


def hold_to_promise(problem: str, certificate: dict[str, Any]) -> None:
    """Refuse a conversion that breaks its method's promise.

    Args:
        problem: what `broken` returned. certificate: its JSON, which goes along.

    Raises:
        CertificateError: where there is a problem.
    """
    if problem:
        summary = {**certificate["summary"], "function preserved": "promised and broken"}
        raise CertificateError(problem, {**certificate, "summary": summary})
