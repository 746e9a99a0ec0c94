"""A real Prometheus with our rules, on a free port, that looks often."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from expressions import DEPLOY
from serving import WAIT_S, wait_until

_DIRECT = build_opener(ProxyHandler({}))


class Prometheus:
    """Answers queries over HTTP."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        """Whether it answers queries already."""
        try:
            with _DIRECT.open(f"{self._address}/-/ready", timeout=WAIT_S):
                return True
        except OSError:
            return False

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; returns its series."""
        return self._get("query", query=expr)["result"]

    def value(self, expr: str) -> float:
        """Evaluate an expression that answers one number; 0 if it answers nothing."""
        series = self.ask(expr)
        return float(series[0]["value"][1]) if series else 0.0

    def health_of_targets(self) -> dict[str, str]:
        """Say how the last look at each target went, by job."""
        return {target["labels"]["job"]: target["health"] for target in self._get("targets")["activeTargets"]}

    def failed_rules(self) -> list[str]:
        """Say which rules could not be evaluated."""
        groups = self._get("rules")["groups"]
        return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]

    def _get(self, path: str, **parameters: str) -> Any:
        with _DIRECT.open(f"{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=WAIT_S) as answer:
            return json.load(answer)["data"]


@contextmanager
def running_prometheus(folder: Path, mixers: list[str], *, is_hasty: bool = False) -> Iterator[Prometheus]:
    """Run Prometheus in a copy of deploy/.

    Args:
        folder: where the copy is made; runs/train in it is where a training run is looked for.
        mixers: addresses of the metrics pages of mixer servers.
        is_hasty: whether it looks five times a second, and takes a second for a minute in all rules.
    """
    copy = folder / "deploy" / "prometheus"
    shutil.copytree(DEPLOY / "prometheus", copy)
    config = copy / "prometheus.yml"
    config.write_text(config.read_text().replace("15s", "200ms" if is_hasty else "1s"))
    for rules in (copy / "rules").glob("*.yml") if is_hasty else ():
        rules.write_text(_shortened(rules.read_text()))
    (copy / "targets" / "mixers.yml").write_text(json.dumps([{"targets": mixers}]))
    port = _free_port()
    flags = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Prometheus(port)
        wait_until(lambda: process.poll() is not None or server.is_ready())
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _shortened(rules: str) -> str:
    return re.sub(r"\b(\d+)([mh])\b", lambda found: f"{int(found[1]) * (60 if found[2] == 'h' else 1)}s", rules)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
