"""Writes the dashboards as the JSON that Grafana's provisioning reads: `make dashboards`."""

import json
import sys
from pathlib import Path

from fleet_page import FLEET
from mixer_page import SERVER
from training_page import TRAINING

FOLDER = Path(__file__).parent / "dashboards"


def main(folder: Path = FOLDER) -> None:
    """Write each dashboard as FOLDER/UID.json."""
    for dashboard in (FLEET, SERVER, TRAINING):
        text = json.dumps(dashboard.to_json(), indent=1, ensure_ascii=False)
        (folder / f"{dashboard.uid}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
