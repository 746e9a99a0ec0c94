"""Writes the rules of deploy/prometheus as a PrometheusRule, which a kustomization cannot take from another folder."""

import sys
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[1] / "prometheus" / "rules"
TARGET = Path(__file__).parent / "components" / "monitoring" / "rules.yaml"

AUTOSCALING = {
    "name": "samix-autoscaling",
    "rules": [
        {
            # Zero while nobody asks: without a value the autoscaler would leave things as they are.
            "record": "pod:mixer_queue_seconds:mean2m",
            "expr": (
                'sum by (namespace, pod) (rate(mixer_stage_duration_seconds_sum{stage="queue"}[2m]))\n'
                '  / (sum by (namespace, pod) (rate(mixer_stage_duration_seconds_count{stage="queue"}[2m])) > 0)\n'
                'or 0 * sum by (namespace, pod) (rate(mixer_stage_duration_seconds_count{stage="queue"}[2m]))\n'
            ),
        }
    ],
}
"""What only Kubernetes asks for: the labels namespace and pod are its own."""


def prometheus_rule() -> dict[str, Any]:
    """Put all groups into one object."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    groups.append(AUTOSCALING)
    # Recording rules and alerts of one program stand in groups of one name, which an object may have once.
    names = [group["name"] for group in groups]
    named = [
        {**group, "name": f"{group['name']}-{names[:index].count(group['name']) + 1}"}
        if names.count(group["name"]) > 1
        else group
        for index, group in enumerate(groups)
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "samix"},
        "spec": {"groups": named},
    }


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def main(target: Path = TARGET) -> None:
    """Write the object."""
    about = "# Written by `make kubernetes-rules` from deploy/prometheus/rules; change those.\n"
    target.write_text(
        about + yaml.dump(prometheus_rule(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
