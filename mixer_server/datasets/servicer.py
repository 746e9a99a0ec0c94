"""The methods of samix.mixer.v1.DatasetService."""

import grpc

from mixer_server.datasets.datasets import Datasets
from mixer_server.datasets.subscriber import METHOD
from mixer_server.datasets.subscriptions import Subscriptions
from mixer_server.front.edge import Call, Edge, parse
from mixer_server.front.readiness import DATASET_SERVICE
from samix.mixer.v1 import dataset_pb2 as pb

NUM_METHODS = 1
"""Methods that are counted with those of other services; Subscribe bounds its calls itself."""


class DatasetServicer:
    """Speaks gRPC only: batches are made elsewhere."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    def attach(self, server: grpc.Server, edge: Edge, subscriptions: Subscriptions) -> None:
        """Answer DatasetService on this server."""
        handlers = {
            "ListDatasets": edge.wrap("ListDatasets", self.list_datasets),
            METHOD: subscriptions.handler(),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(DATASET_SERVICE, handlers),))

    def list_datasets(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """List the datasets."""
        parse(pb.ListDatasetsRequest, data)
        return pb.ListDatasetsResponse(datasets=self._datasets.describe()).SerializeToString()
