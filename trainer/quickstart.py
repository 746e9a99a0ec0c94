"""Try the whole product in minutes: pretrain a mixer on handwritten digits, serve it, train on it."""

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samix.errors import ConfigError
from services.cli import program
from services.config import parse_config
from services.shards.order import default_lanes
from services.shards.patterns import escape
from trainer.children import start_child, unwind_on_signals
from trainer.pictures.curves import draw_comparison
from trainer.provenance import software
from trainer.recipes import RECIPES
from trainer.report import write_summary

_PHASES = 7
_PHASE_LIMIT_S = 900.0
_RECIPE = "digits_cpu"


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Run the whole product on scikit-learn's handwritten digits; needs neither GPU nor internet."""

    out: Path = Path("runs/quickstart")
    """Folder for everything it makes."""
    ranks: int = 2
    """Training processes."""
    pretrain_epochs: int = 15
    """Epochs of the mixer."""
    epochs: int = 25
    """Epochs of each training run."""

    def __post_init__(self) -> None:
        if min(self.ranks, self.pretrain_epochs, self.epochs) < 1:
            raise ConfigError(
                "ranks, pretrain_epochs and epochs must be at least 1, got "
                f"{self.ranks}, {self.pretrain_epochs} and {self.epochs}"
            )
        batch = RECIPES[_RECIPE][1].data.global_batch
        if default_lanes(batch) % self.ranks:
            raise ConfigError(f"ranks must divide the batch of {batch} images, got {self.ranks}; 1, 2 and 4 do")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `samix quickstart --out DIR`."""
    config = parse_config(QuickstartConfig, "quickstart", argv)
    unwind_on_signals()
    Quickstart(config).run()


@dataclass
class Quickstart:
    """One run through all phases."""

    config: QuickstartConfig
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Go through all phases and leave summary.json last."""
        out = self.config.out
        (out / "logs").mkdir(parents=True, exist_ok=True)
        (out / "summary.json").unlink(missing_ok=True)
        self._make_shards()
        self._pretrain()
        with self._serve() as addresses:
            mixed = self._train("remote", ["--mixing.endpoint", addresses["grpc"]])
            plain = self._train("none", [])
            self._snapshot(addresses["metrics"])
        self._draw()
        summary = self._summary(mixed, plain)
        write_summary(out / "summary.json", summary)
        print(_table(summary, out))

    def _make_shards(self) -> None:
        with self._phase("shards", "write scikit-learn's 1797 handwritten digits as WebDataset shards"):
            self._run("shards", "samix", ["shards", "digits", "--out", str(self._data)])

    def _pretrain(self) -> None:
        with self._phase("pretrain", "train a SAMix mixer together with a small classifier"):
            epochs = ["--epochs", str(self.config.pretrain_epochs)]
            data = ["--data", self._shards("train"), "--out", str(self._artefact)]
            self._run("pretrain", "samix", ["pretrain", "digits_samix_cpu", *data, *epochs])

    @contextmanager
    def _serve(self) -> Iterator[dict[str, str]]:
        ports = [part for name in ("grpc", "http", "metrics") for part in (f"--{name}-port", "0")]
        args = ["serve", "--mixers", str(self._artefact), "--num-threads", "1", *ports]
        with start_child("samix", args, self._log("serve")) as server:
            with self._phase("serve", "start the mixer server"):
                line = server.wait_for_line("ready ", _PHASE_LIMIT_S)
                print(f"    {line}")
            yield dict(part.split("=", 1) for part in line.split()[1:])

    def _train(self, policy: str, flags: list[str]) -> dict[str, Any]:
        what = "on remotely mixed batches" if policy == "remote" else "without mixing, for comparison"
        with self._phase(f"train_{policy}", f"train {self.config.ranks} ranks {what}"):
            out = self.config.out / policy
            launch = ["--standalone", "--nproc-per-node", str(self.config.ranks), "-m", "trainer", _RECIPE]
            data = ["--data.train", self._shards("train"), "--data.val", self._shards("test"), "--out", str(out)]
            run = ["--mixing.policy", policy, "--epochs", str(self.config.epochs)]
            page = ["--metrics.port", "0", "--metrics.linger-s", "0", "--overwrite"]
            self._run(f"train_{policy}", "torch.distributed.run", [*launch, *data, *run, *page, *flags])
            return json.loads((out / "summary.json").read_text())

    def _snapshot(self, address: str) -> None:
        what = "save the server's metrics page (each rank saved its own beside its run)"
        # Past any proxy of the environment: the server is on this machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with self._phase("metrics", what), direct.open(f"http://{address}/metrics", timeout=10) as page:
            (self.config.out / "metrics.txt").write_bytes(page.read())

    def _draw(self) -> None:
        with self._phase("gallery", "draw what the mixer does"):
            pictures = [
                "--out",
                str(self.config.out / "gallery.png"),
                "--masks-plot",
                str(self.config.out / "masks.png"),
            ]
            args = ["gallery", "--mixer", str(self._artefact), "--data", self._shards("test"), *pictures]
            self._run("gallery", "samix", args)
            draw_comparison(self.config.out / "curves.png", [self.config.out / "remote", self.config.out / "none"])

    def _summary(self, mixed: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
        return {
            "artefact": str(self._artefact),
            "top1": mixed["top1"],
            "remote": mixed,
            "none": plain,
            "phase_seconds": self.seconds,
            "seconds": round(sum(self.seconds.values()), 1),
            **software(),
        }

    @contextmanager
    def _phase(self, name: str, what: str) -> Iterator[None]:
        print(f"[{len(self.seconds) + 1}/{_PHASES}] {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"    done in {self.seconds[name]:.1f} s", flush=True)

    def _run(self, name: str, module: str, args: list[str]) -> None:
        with start_child(module, args, self._log(name)) as child:
            child.wait(_PHASE_LIMIT_S, _show)

    def _log(self, name: str) -> Path:
        return self.config.out / "logs" / f"{name}.log"

    def _shards(self, split: str) -> str:
        return f"{escape(self._data)}/digits-{split}-*.tar"

    @property
    def _data(self) -> Path:
        return self.config.out / "digits"

    @property
    def _artefact(self) -> Path:
        return self.config.out / "digits.safetensors"


def _show(line: str) -> None:
    """Pass on what a person wants to see of a child's log: its epochs and its warnings."""
    _time, _, rest = line.partition(" ")
    level, _, rest = rest.partition(" ")
    _logger, _, event = rest.partition(" ")
    if event.startswith("epoch ") or level in ("WARNING", "ERROR"):
        print(f"    {event}", flush=True)


def _table(summary: dict[str, Any], out: Path) -> str:
    rows = [
        ("", "mixed by the server", "no mixing"),
        *(
            (title, show(summary["remote"]), show(summary["none"]))
            for title, show in (
                ("test accuracy", lambda run: f"{100 * run['top1']:.2f} %"),
                ("images trained on", lambda run: f"{run['images']}"),
                ("optimiser steps per rank", lambda run: f"{run['steps']}"),
                ("batches mixed by the fallback", lambda run: f"{run['fallbacks']}"),
                ("time spent on getting mixed batches", lambda run: f"{100 * run['wait_share']:.1f} %"),
                ("training time", lambda run: f"{run['seconds']:.0f} s"),
            )
        ),
    ]
    lines = [f"  {title:<38}{mixed:<22}{plain}" for title, mixed, plain in rows]
    return "\n".join(["", *lines, "", f"  look at {out}/gallery.png, curves.png, masks.png; numbers: summary.json", ""])
