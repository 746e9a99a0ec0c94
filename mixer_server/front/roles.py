"""Which role a token needs for which service, and what is counted where it has not."""

from collections.abc import Mapping

import grpc

from mixer_server.front.readiness import DATASET_SERVICE, INFERENCE_SERVICE, ONLINE_SERVICE, SERVICE
from mixer_server.metrics import UNKNOWN, MixerMetrics
from services.security.access import Denial, OnDenial
from services.security.tokens import Role

ROLES: Mapping[str, Role] = {
    SERVICE: "mix",
    INFERENCE_SERVICE: "mix",
    DATASET_SERVICE: "mix",
    ONLINE_SERVICE: "online",
    "samix.mixer.v1.AdminService": "admin",
}
"""Health checks need none; of what else there is, reflection above all, any token is asked for."""


def count_denials(metrics: MixerMetrics) -> OnDenial:
    """Make what counts calls that are refused for their token."""

    def count(method: str, denial: Denial) -> None:
        # A name that is no method of ours is the caller's choice, and no label.
        status = grpc.StatusCode.PERMISSION_DENIED if denial.is_known else grpc.StatusCode.UNAUTHENTICATED
        metrics.requests.labels(UNKNOWN, UNKNOWN, method or UNKNOWN, status.name).inc()
        metrics.problems.note(method or UNKNOWN, status.name, denial.sentence)

    return count
