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


def hold_to_promise(record: Mapping[str, Any], what: str, difference: float, largest: float) -> None:
    """Refuse a conversion that breaks its method's promise.

    Args:
        record: its moesaic.json. what: the compared output. difference: the largest in it. largest: value of it.

    Raises:
        CertificateError: where the difference is more than rounding can make.
    """
    limit = ROUNDINGS.get(record.get("rounds_to") or "", PROMISE) * max(largest, 1.0)
    if record["preserves_function"] and difference > limit:
        raise CertificateError(
            f"{record['experts']['method']}: the converted model must compute what the dense one does, as this method "
            f"promises. Got a difference of {difference:.3g} in {what} (allowed {limit:.3g}). Nothing was published."
        )
