"""How a caller wants two models to be compared, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnfold.verification.judging.comparing import Tolerances
from bnfold.verification.runtime.devices import Device, DeviceRequest, parse_device
from bnfold.verification.runtime.limits import check_limit, require_threads


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; see `bnfold.verification.verify`.

    Attributes:
        device: The device.
        tolerances: What the caller accepts, or None.
        tf32: Whether a run as deployed was asked for.
        limit_s: Longest time for one run of a model, in seconds.
        threads: How many threads the runtime may have; None for its own choice.
        is_exact: Whether the exact gate found every region that changed to be right.
    """

    device: DeviceRequest
    tolerances: Tolerances | None
    tf32: bool
    limit_s: float
    threads: int | None
    is_exact: bool

    @staticmethod
    def of(
        device: str,
        rtol: float | None,
        atol: float | None,
        *,
        tf32: bool,
        timeout_s: float,
        threads: int | None,
        is_exact: bool,
    ) -> Request:
        """What a caller says, checked.

        Raises:
            UsageError: Something is out of range, or contradicts the rest.
        """
        require_threads(threads)
        return Request(
            parse_device(device, tf32=tf32),
            Tolerances.of(rtol, atol),
            tf32,
            check_limit(timeout_s),
            threads,
            is_exact,
        )

    def limited(self, device: Device) -> Device:
        """A device with the limits that the caller set."""
        return replace(device, run_limit_s=self.limit_s, threads=self.threads)
