"""How a caller wants two models to be compared, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnfold.verification.judging.comparing import Tolerances
from bnfold.verification.runtime.devices import Device, DeviceRequest, parse_device
from bnfold.verification.runtime.limits import require_threads


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; see `bnfold.verification.verify`.

    Attributes:
        device: The device.
        tolerances: What the caller accepts, or None.
        tf32: Whether a run as deployed was asked for.
        threads: How many threads the runtime may have; None for its own choice.
        is_exact: Whether the exact gate found every region that changed to be right.
    """

    device: DeviceRequest
    tolerances: Tolerances | None
    tf32: bool
    threads: int | None
    is_exact: bool

    @staticmethod
    def of(
        device: str,
        rtol: float | None,
        atol: float | None,
        *,
        tf32: bool,
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
            threads,
            is_exact,
        )

    def limited(self, device: Device) -> Device:
        """A device with the threads that the caller allows."""
        return replace(device, threads=self.threads)
