"""Imports go down only: samix <- services <- {mixer_server, trainer}; read from the sources, nothing is imported."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FIRST_PARTY = {
    "samix": {"samix"},
    "services": {"samix", "services"},
    "mixer_server": {"samix", "services", "mixer_server"},
    "trainer": {"samix", "services", "trainer"},
}
"""What each package may import of ours; mixer_server and trainer never meet."""

LIBRARY = {"torch", "numpy", "safetensors", "grpc", "google", "grpc_status"}
"""All a client-only install has beside Python itself."""

LAZY_LIBRARY = {"timm", "torchvision", "scipy"}
"""Imported inside functions: they take seconds, and the client never needs them."""


NEIGHBOURS = {
    "samix/adapters/lightning.py": {"lightning", "pytorch_lightning"},
    "samix/adapters/opentelemetry.py": {"opentelemetry"},
    "samix/adapters/transformers.py": {"transformers"},
}
"""Adapters whose classes extend those of a neighbour; whoever imports them has it."""


@dataclass(frozen=True)
class Import:
    """One import statement."""

    file: str
    """Path from the project root."""
    module: str
    """What is imported, with the name where it may be a module: `samix.client.remote`."""
    at_top: bool
    """Whether it runs when the file is imported."""

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def imports_of(source: str, file: str) -> Iterator[Import]:
    package = file.removesuffix(".py").split("/")[:-1]
    tree = ast.parse(source, file)
    inside = {id(node) for outer in ast.walk(tree) if _is_function(outer) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        for module in _modules(node, package):
            yield Import(file, module, at_top=id(node) not in inside)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _modules(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) + 1 - node.level] if node.level else []
        parent = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{parent}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).split(".")[-1]
        return [str(node.args[0].value)] if called in {"import_module", "__import__"} else []
    return []


def imports_below(*folders: str) -> list[Import]:
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files, f"no sources in {folders}"
    return [found for file in files for found in imports_of(file.read_text("utf-8"), file.relative_to(ROOT).as_posix())]


def within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize("package", FIRST_PARTY)
def test_packages_import_only_themselves_and_below(package: str) -> None:
    """No package imports one above or beside it, nor the tests."""
    ours = FIRST_PARTY.keys() | {"tests", "benchmarks"}

    upward = [found for found in imports_below(package) if found.top in ours - FIRST_PARTY[package]]

    assert not upward


def test_the_library_needs_only_its_few_dependencies() -> None:
    """samix imports Python, itself and the listed libraries; the heavy one only inside functions."""
    allowed = LIBRARY | {"samix"} | sys.stdlib_module_names

    foreign = [
        found
        for found in imports_below("samix")
        if found.top not in allowed | NEIGHBOURS.get(found.file, set())
        and (found.at_top or found.top not in LAZY_LIBRARY)
    ]

    assert not foreign


def test_the_library_knows_no_adapters() -> None:
    """Nothing in samix imports an adapter but another adapter, so that no neighbour is needed."""
    users = {found.file for found in imports_below("samix") if within(found.module, "samix.adapters")}

    assert users
    assert all(file.startswith("samix/adapters/") for file in users)


def test_the_mathematics_knows_no_network() -> None:
    """samix.mixing imports neither the client nor the wire, and no gRPC."""
    above = ("samix.client", "samix.wire", "samix.status", "samix.mixer", "samix.cli", "grpc", "google", "socket")

    wrong = [found for found in imports_below("samix/mixing") if any(within(found.module, name) for name in above)]

    assert not wrong


def test_the_library_leaves_the_inference_protocol_to_the_server() -> None:
    """No client of ours imports the messages of the Open Inference Protocol, which tritonclient defines as well."""
    users = [found for found in imports_below("samix") if within(found.module, "samix.inference")]

    assert not [found for found in users if not found.file.startswith("samix/inference/")]


def test_the_servicer_knows_no_tensors() -> None:
    """mixer_server/front/servicer.py speaks the protocol: torch stays in the engine."""
    wrong = [found for found in imports_below("mixer_server") if found.file.endswith("/servicer.py")]

    assert wrong
    assert not [found for found in wrong if found.top == "torch"]


def test_the_server_knows_no_distributed_training() -> None:
    """A mixer server is one process: nothing of torch.distributed."""
    wrong = [found for found in imports_below("mixer_server") if within(found.module, "torch.distributed")]

    assert not wrong


@pytest.mark.parametrize(
    ("source", "module", "at_top"),
    [
        ("import trainer.run", "trainer.run", True),
        ("from trainer import run", "trainer.run", True),
        ("from . import wire", "samix.mixing.wire", True),
        ("from ..client import remote", "samix.client.remote", True),
        ("def f():\n    import timm", "timm", False),
        ("if True:\n    import timm", "timm", True),
        ("import importlib\nimportlib.import_module('trainer')", "trainer", True),
    ],
)
def test_every_kind_of_import_is_seen(source: str, module: str, at_top: bool) -> None:
    """The reader of imports misses no form of them."""
    assert Import("samix/mixing/x.py", module, at_top) in list(imports_of(source, "samix/mixing/x.py"))
