"""The accuracy table, on screen and as a picture."""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure


def headline(about: dict[str, Any]) -> str:
    """Name machine, commit and date in one line."""
    machine, versions = about["machine"], about["versions"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}; "
        f"commit {versions['commit']}, torch {versions['torch']}, {about['date']}"
    )


def accuracy_table(report: dict[str, Any]) -> str:
    """Lay out one line for each way of training: top-1 in percent of each seed, mean and spread, and its cost.

    Args:
        report: what `benchmarks.accuracy` writes as table.json.
    """
    seeds = [run["seed"] for run in report["ways"][0]["runs"]]
    lines = [f"{'':<26}{''.join(f'seed {seed:<4}' for seed in seeds)}{'mean':>7} {'spread':>7} {'minutes':>8}"]
    for way in report["ways"]:
        accuracies = [100 * run["top1"] for run in way["runs"]]
        cells = "".join(f"{accuracy:<9.2f}" for accuracy in accuracies)
        minutes = fmean(run["seconds"] for run in way["runs"]) / 60
        lines.append(f"{way['title']:<26}{cells}{fmean(accuracies):>7.2f} {_spread(accuracies):>7.2f} {minutes:>8.1f}")
    return "\n".join([*lines, "", *_seed_lines(report), *_mixer_lines(report)])


def draw_accuracies(path: Path, report: dict[str, Any]) -> None:
    """Draw every run as a point and the mean of each way as a stroke; bars would need an axis from 0."""
    ways = sorted(report["ways"], key=lambda way: fmean(run["top1"] for run in way["runs"]))
    figure = Figure(figsize=(7, 0.4 * len(ways) + 1.2), layout="constrained")
    axes = figure.subplots()
    for height, way in enumerate(ways):
        accuracies = [100 * run["top1"] for run in way["runs"]]
        colour = "tab:blue" if "SAMix" in way["title"] else "0.5"
        axes.axhline(height, color="0.9", zorder=0)
        axes.plot(fmean(accuracies), height, "|", color=colour, markersize=22, markeredgewidth=3)
        axes.plot(accuracies, [height] * len(accuracies), ".", color=colour, markersize=8)
        axes.text(max(accuracies), height, f"  {fmean(accuracies):.1f}", va="center", fontsize=8)
    everything = [100 * run["top1"] for way in ways for run in way["runs"]]
    axes.set_xlim(min(everything) - 3, max(everything) + 3)
    axes.set_ylim(-0.7, len(ways) - 0.3)
    axes.set_yticks(range(len(ways)), [way["title"] for way in ways])
    axes.set_xlabel("top-1, % (dots: seeds, strokes: means; blue: learned mixers)")
    figure.savefig(path, dpi=120)


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _seed_lines(report: dict[str, Any]) -> list[str]:
    """Say how long all runs of a seed took, as many at a time as there were."""
    runs = [run for way in report["ways"] for run in way["runs"]]
    jobs, lines = report["settings"]["jobs"], []
    for seed in sorted({run["seed"] for run in runs}):
        minutes = sum(run["seconds"] for run in runs if run["seed"] == seed) / 60
        lines.append(f"seed {seed}: {minutes:.0f} minutes of runs, {minutes / jobs:.0f} with {jobs} at a time")
    return lines


def _mixer_lines(report: dict[str, Any]) -> list[str]:
    """Say how good the masks of the mixers trained on the way are."""
    lines = []
    for way in report["ways"]:
        for run in way["runs"]:
            if "lam_error" in run:
                figures = f"mean |mean(mask) - lam| {run['lam_error']:.3f}, spatial std {run['spread']:.3f}"
                lines.append(f"mixer of {way['title']}, seed {run['seed']}: {figures}")
    return lines
