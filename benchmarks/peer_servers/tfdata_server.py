"""tf.data service: a dispatcher and one worker, which make whatever dataset their clients describe."""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
import argparse

import tensorflow as tf


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="of the dispatcher")
    parser.add_argument("--spare-ports", type=int, nargs=2, required=True, help="the first is the worker's")
    flags = parser.parse_args()
    service = tf.data.experimental.service
    # The worker comes first in time: the dispatcher's port tells that both are there.
    worker_config = service.WorkerConfig(
        dispatcher_address=f"127.0.0.1:{flags.port}",
        worker_address=f"127.0.0.1:{flags.spare_ports[0]}",
        port=flags.spare_ports[0],
    )
    worker = service.WorkerServer(worker_config, start=False)
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=flags.port))
    worker.start()
    dispatcher.join()


if __name__ == "__main__":
    main()
