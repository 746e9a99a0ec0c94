"""The question which datasets a server has, asked of one replica or the other."""

from functools import partial

from samix.client.attempts import Attempt
from samix.client.datasets.calls import SERVICE
from samix.client.replicas import Replica, Replicas
from samix.client.unary import UnaryAttempt, closed_error
from samix.errors import MixerError
from samix.mixer.v1 import dataset_pb2 as pb


class ListingRoute:
    """Sends the question; see `retrying.Sender`."""

    num_bytes = 0
    """Of the question."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def start(self, timeout_s: float) -> Attempt:
        """Ask the replica whose turn it is.

        Raises:
            InputError, MixerCancelled: as `Connection.line` does.
        """
        replica = self._replicas.choose()
        line = replica.connection.line()
        try:
            call = line.channel.unary_unary(f"{SERVICE}ListDatasets").future(
                pb.ListDatasetsRequest().SerializeToString(), timeout=timeout_s, metadata=line.metadata
            )
        except ValueError as error:  # gRPC's answer when another thread closes the channel right now
            raise closed_error(line.target) from error
        attempt = UnaryAttempt(call, pb.ListDatasetsResponse, line.target)
        attempt.add_done_callback(partial(self._note, replica))
        return attempt

    def start_elsewhere(self, timeout_s: float) -> Attempt | None:  # noqa: ARG002 - the shape of the protocol
        """Ask nobody: the question is not worth asking twice."""
        return None

    def _note(self, replica: Replica, attempt: Attempt) -> None:
        outcome = attempt.outcome
        self._replicas.note(replica, outcome if isinstance(outcome, MixerError) else None)
