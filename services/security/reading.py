"""Files that hold secrets or are trusted: read whole and bounded, with a warning about who else may read them."""

import logging
import os
import stat
from pathlib import Path

from samix.errors import ConfigError

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_file(path: Path, flag: str, *, is_secret: bool = False) -> bytes:
    """Read a file of the configuration.

    Args:
        path: of the file.
        flag: that names it, without dashes in front.
        is_secret: whether others than its owner should not read it; where they can, the log says so.

    Raises:
        ConfigError: if it cannot be read, or is larger than such a file can be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise ConfigError(f"{flag}: cannot read {path} ({error.strerror}); check path and permissions") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{flag}: {path} is larger than {_MAX_BYTES} bytes; is it the right file?")
    if is_secret and mode & _OTHERS:
        log.warning("secret_file_open_to_others", extra={"file": path, "mode": f"{mode:04o}", "cure": "chmod 600"})
    return data
