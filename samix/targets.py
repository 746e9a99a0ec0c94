"""What the address of one server looks like; imports nothing, for programs that must start at once."""

import re

_NETWORK_TARGET = re.compile(r"(dns:///)?([\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
_UNIX_TARGET = re.compile(r"unix:///\S+")


def is_target(text: str) -> bool:
    """Whether a text is the address of one server: `host:port`, `dns:///name:port` or `unix:///path`."""
    network = _NETWORK_TARGET.fullmatch(text)
    return 1 <= int(network["port"]) <= 65535 if network else _UNIX_TARGET.fullmatch(text) is not None
