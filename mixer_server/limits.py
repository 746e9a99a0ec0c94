"""Checks that several parts of the server's configuration share."""

from samix.errors import ConfigError

_DAY_S = 86_400.0


def check_seconds(flag: str, value: float) -> None:
    """Refuse a time that no clock or lock can wait for, such as inf and nan.

    Raises:
        ConfigError: unless it is positive and at most a day.
    """
    if not 0 < value <= _DAY_S:
        raise ConfigError(f"{flag} must be positive and at most {_DAY_S:.0f} (a day), got {value}")
