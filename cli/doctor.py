"""`bnfold doctor`: what a verification could run on here, and what to install for what is missing."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.terminal import say, say_json

if TYPE_CHECKING:
    from bnfold.verification.runtime.doctor import Diagnosis

SCHEMA = "bnfold.doctor/1"
NO_DEVICE_EXIT_CODE = 4


def doctor(
    device: Annotated[
        str,
        typer.Option(
            metavar=options.DEVICES,
            autocompletion=options.one_of(options.DEVICES),
            help="Leave with exit code 4 if this device cannot be used; auto is content with any.",
        ),
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document (bnfold.doctor/1) and nothing else.")
    ] = False,
) -> None:
    """Say which devices can verify here, and what others lack.

    Each is tried, and what is missing comes with what to install.
    """
    from bnfold.verification.runtime.devices import DeviceRequest, parse_device
    from bnfold.verification.runtime.doctor import examine

    wanted = parse_device(device)
    diagnosis = examine()
    usable = bool(diagnosis.devices) if wanted is DeviceRequest.AUTO else wanted in diagnosis.devices
    if as_json:
        say_json(json.dumps(_document(diagnosis), indent=2, ensure_ascii=False))
    else:
        say(_lines(diagnosis))
    if not usable:
        raise typer.Exit(NO_DEVICE_EXIT_CODE)


def _document(diagnosis: "Diagnosis") -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "devices": list(diagnosis.devices),
        "versions": diagnosis.versions,
        "checks": [
            {"subject": check.subject, "good": check.good, "found": check.found, "remedy": check.remedy}
            for check in diagnosis.checks
        ],
    }


def _lines(diagnosis: "Diagnosis") -> list[str]:
    lines = [f"{name} {version}" for name, version in diagnosis.versions.items()]
    width = max(len(check.subject) for check in diagnosis.checks)
    lines.append("")
    for check in diagnosis.checks:
        lines.append(f"{'ok     ' if check.good else 'missing'}  {check.subject:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"         {'':<{width}}  -> {check.remedy}")
    return [*lines, "", f"--device can be: {', '.join(diagnosis.devices) or 'nothing'}"]
