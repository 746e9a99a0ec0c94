"""Asks a server as a user of tritonclient would, in a process of its own: `triton_client.py MODE ADDRESS FOLDER`.

tritonclient defines the messages of the Open Inference Protocol again, so it cannot live beside a server of ours. Reads
images, lam and index from FOLDER/call.npz; writes FOLDER/facts.json, and FOLDER/answers.npz of all tensors.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException

WAIT_S = 20.0

Ask = Callable[..., Awaitable[Any]]


async def tell_all(ask: Ask, folder: Path) -> None:
    """Ask for everything there is, and write it down."""
    tensors = dict(np.load(folder / "call.npz"))
    facts = await describe(ask)
    answers, facts["ids"] = await infer(ask, tensors)
    facts["refusals"] = await be_refused(ask, tensors)
    facts["statistics"] = await ask("get_inference_statistics", "tiny", as_json=True)
    (folder / "facts.json").write_text(json.dumps(facts))
    np.savez(folder / "answers.npz", allow_pickle=False, **answers)


async def describe(ask: Ask) -> dict[str, Any]:
    """Ask for health and descriptions."""
    return {
        "live": await ask("is_server_live"),
        "ready": await ask("is_server_ready"),
        "model_ready": await ask("is_model_ready", "tiny"),
        "server": await ask("get_server_metadata", as_json=True),
        "index": await ask("get_model_repository_index", as_json=True),
        "model": await ask("get_model_metadata", "tiny", as_json=True),
        "config": await ask("get_model_config", "tiny", as_json=True),
    }


async def infer(ask: Ask, tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Have batches mixed: a whole plan, a seed, and pictures as JPEGs."""
    plan = [put("lam", tensors["lam"], "FP32"), put("index", tensors["index"], "INT32")]
    images, jpeg = put("images", tensors["images"], "UINT8"), put("jpeg", tensors["jpeg"], "BYTES")
    wanted = [sync.InferRequestedOutput(name) for name in ("mixed", "mask_logits")]
    results = {
        "whole": await ask("infer", "tiny", [images, *plan], request_id="7"),
        "seeded": await ask("infer", "tiny", [images], outputs=wanted, parameters={"seed": 7}),
        "jpeg": await ask("infer", "tiny", [jpeg, *plan], outputs=wanted),
    }
    answers = {
        f"{kind}/{output.name}": result.as_numpy(output.name)
        for kind, result in results.items()
        for output in result.get_response().outputs
    }
    return answers, [result.get_response().id for result in results.values()]


async def be_refused(ask: Ask, tensors: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Ask for what cannot be; answers status and sentence of each refusal."""
    images, lam, index = (
        put(name, tensors[name], datatype)
        for name, datatype in (("images", "UINT8"), ("lam", "FP32"), ("index", "INT32"))
    )
    lying = put("images", tensors["images"], "UINT8").set_shape([4, 3, 64, 64])
    shared = sync.InferInput("images", images.shape(), "UINT8")
    shared.set_shared_memory("region", 12288)
    requests: dict[str, dict[str, Any]] = {
        "ghost": {"model_name": "ghost", "inputs": [images, lam, index]},
        "version": {"model_name": "tiny", "inputs": [images, lam, index], "model_version": "1"},
        "size": {"model_name": "tiny", "inputs": [lying, lam, index]},
        "missing": {"model_name": "tiny", "inputs": [images, lam]},
        "input": {"model_name": "tiny", "inputs": [images, put("mask", tensors["lam"], "FP32")]},
        "output": {
            "model_name": "tiny",
            "inputs": [images, lam, index],
            "outputs": [sync.InferRequestedOutput("masks")],
        },
        "parameter": {"model_name": "tiny", "inputs": [images, lam, index], "parameters": {"x": 1}},
        "shared": {"model_name": "tiny", "inputs": [shared, lam, index]},
    }
    refusals = {}
    for name, request in requests.items():
        try:
            await ask("infer", **request)
        except InferenceServerException as error:
            refusals[name] = [str(error.status()), error.message()]
    return refusals


def put(name: str, values: np.ndarray, datatype: str) -> Any:
    """Make an input of an array."""
    tensor = sync.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


async def run_sync(address: str, folder: Path) -> None:
    """Ask by the client that waits."""
    with sync.InferenceServerClient(address) as client:

        async def ask(method: str, *args: Any, **settings: Any) -> Any:
            return getattr(client, method)(*args, client_timeout=WAIT_S, **settings)

        await tell_all(ask, folder)


async def run_aio(address: str, folder: Path) -> None:
    """Ask by the client of asyncio."""
    async with aio.InferenceServerClient(address) as client:

        async def ask(method: str, *args: Any, **settings: Any) -> Any:
            return await getattr(client, method)(*args, client_timeout=WAIT_S, **settings)

        await tell_all(ask, folder)


if __name__ == "__main__":
    asyncio.run({"sync": run_sync, "aio": run_aio}[sys.argv[1]](sys.argv[2], Path(sys.argv[3])))
