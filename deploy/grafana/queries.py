"""PromQL that several panels spell alike, and the panels that both programs have."""

from panels import Panel, Query, timeseries

MIX_CALLS = 'method=~"Mix|MixStream|ModelInfer"'
"""Calls that mix a batch."""


def quantile(share: float, by: str, histogram: str, labels: str) -> str:
    """Estimate below what that share of observations lay, for each value of the labels `by`."""
    grouping = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouping}) (rate({histogram}_bucket{{{labels}}}[$__rate_interval])))"


def mean(by: str, histogram: str, labels: str) -> str:
    """Average observations, for each value of the labels `by`."""
    return f"{rate(by, f'{histogram}_sum', labels)} / {rate(by, f'{histogram}_count', labels)}"


def rate(by: str, counter: str, labels: str) -> str:
    """Count per second, for each value of the labels `by`."""
    return f"sum by ({by}) (rate({counter}{{{labels}}}[$__rate_interval]))"


def increase(by: str, counter: str, labels: str) -> str:
    """Count what came since the last point, for each value of the labels `by`."""
    return f"sum by ({by}) (increase({counter}{{{labels}}}[$__rate_interval]))"


def memory(labels: str, legend: str) -> Panel:
    """Resident memory of processes, which both kinds of program have."""
    return timeseries("Resident memory", Query(f"process_resident_memory_bytes{{{labels}}}", legend), unit="bytes")


def cores(labels: str, legend: str) -> Panel:
    """Cores that processes keep busy."""
    return timeseries(
        "Processor",
        Query(f"rate(process_cpu_seconds_total{{{labels}}}[$__rate_interval])", legend),
        unit="short",
        help="Cores kept busy.",
    )
