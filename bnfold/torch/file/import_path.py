"""Import paths of code, `package.module:name`; to know one takes no torch."""

import re

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(text: str) -> bool:
    """Whether a text has the form `package.module:name`."""
    return _FORM.fullmatch(text) is not None
