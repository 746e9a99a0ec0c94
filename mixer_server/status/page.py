"""The status page as HTML."""

from collections.abc import Sequence
from datetime import UTC, datetime

from mixer_server.status.assets import HEADERS, SCRIPT, STYLE
from mixer_server.status.history import NUM_PERIODS, PERIOD_S
from mixer_server.status.markup import Markup, chart, join, meter, note, section, table, text, tile
from mixer_server.status.snapshot import Client, PictureLine, Status
from services.http import Page

_MOST_CLIENTS = 12
_HTML = "text/html; charset=utf-8"
_STAGES = {
    "decode": "check a request, decode its pictures",
    "queue": "wait for a pass",
    "compute": "a pass",
    "encode": "write the answer",
}

# Addresses are relative, for servers behind a proxy that gives them a folder of its own.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>SAMix mixer server</title>
<link rel="icon" href="icon.svg" type="image/svg+xml">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<style>{style}</style>
</head>
<body>
<div class="page">
<header>
<h1>SAMix mixer server</h1>
<p class="controls"><span id="said">as of {time} UTC</span></p>
</header>
<main id="live">
{live}
</main>
<footer>
<p>For programs: <a href="status.json">status.json</a>, <a href="metrics">metrics</a>,
<a href="readyz">readyz</a>, <a href="livez">livez</a></p>
</footer>
</div>
<script>{script}</script>
</body>
</html>
"""


def status_page(status: Status | None, extra: Sequence[Markup] = ()) -> Page:
    """Make the whole page.

    Args:
        status: what to show; None where no worker answers.
        extra: sections to put behind the mixers.
    """
    time = datetime.now(UTC).strftime("%H:%M:%S")
    body = _PAGE.format(style=STYLE, script=SCRIPT, time=time, live=_live(status, extra))
    return Page(body, status=200 if status else 503, content_type=_HTML, headers=HEADERS)


def live_page(status: Status | None, extra: Sequence[Markup] = ()) -> Page:
    """Make the part that changes, for the page's script."""
    body = f'<!doctype html>\n<title>live</title>\n<main id="live">\n{_live(status, extra)}\n</main>\n'
    return Page(body, content_type=_HTML, headers=HEADERS)


def _live(status: Status | None, extra: Sequence[Markup]) -> Markup:
    if status is None:
        return join([_state("no worker answers"), *extra])
    return join(
        [
            Markup(f"<div>{_state(status.state)}\n{_facts(status)}</div>"),
            _now(status),
            _throughput(status),
            _mixers(status),
            *extra,
            _half(_queue(status)),
            _half(_stages(status)),
            _clients(status.clients),
            _datasets(status),
            _problems(status),
            _gallery(status),
        ]
    )


def _half(part: Markup) -> Markup:
    return Markup(part.replace("<section", '<section class="half"', 1))


def _state(state: str) -> Markup:
    kind = "state ready" if state == "ready" else "state"
    return Markup(f'<p class="{kind}" role="status">{text(state)}</p>')


def _facts(status: Status) -> Markup:
    return Markup(f'<p class="facts">Version {text(status.version)}, up for {_duration(status.uptime_s)}</p>')


def _now(status: Status) -> Markup:
    traffic = status.traffic
    tiles = [
        tile("Images", _count(traffic.images_per_s), "/ s", f"{_count(traffic.answers_per_s)} requests / s"),
        tile("Latency, half below", *_latency(traffic.latency_s(0.5)), "of the last minute"),
        tile("Latency, 99 % below", *_latency(traffic.latency_s(0.99)), "of the last minute"),
        tile("Refused", _count(traffic.refusals_per_s), "/ s", "or failed"),
        tile("Received", *_bytes(traffic.received_bytes_per_s), "each second"),
        tile("Sent", *_bytes(traffic.sent_bytes_per_s), "each second"),
    ]
    return section("now", "Now", Markup(f'<dl class="tiles">\n{join(tiles)}\n</dl>'))


def _throughput(status: Status) -> Markup:
    values = status.traffic.history
    top, minutes = max([*values, 0.0]), NUM_PERIODS * PERIOD_S / 60
    last = values[-1] if values else 0.0
    description = f"Images mixed each second over {minutes:.0f} minutes: at most {_count(top)}, now {_count(last)}"
    words = (f"{minutes:.0f} minutes ago", f"at most {_count(top)} / s", "now")
    axis = f'<p class="axis">{"".join(f"<span>{word}</span>" for word in words)}</p>'
    return section("throughput", "Images each second", chart(values, NUM_PERIODS, description), Markup(axis))


def _mixers(status: Status) -> Markup:
    columns = ("Mixer", "Version", "State", "Encoder", "Mode", "Image sides", "Device")
    rows = [
        (line.name, line.version, line.state, line.encoder, line.mode, line.sides, line.device)
        for line in status.mixers
    ]
    served = table("Mixers that are served", columns, rows) if rows else note("No mixer is served.")
    parts = [section("mixers", "Mixers", served)]
    if status.absent:
        lines = [(line.name, line.state, line.file, line.reason) for line in status.absent]
        absent = table("Mixers that are not served", ("Mixer", "State", "File", "Reason"), lines)
        parts.append(section("absent", "Not served", absent))
    return join(parts)


def _queue(status: Status) -> Markup:
    waiting = f"{_count(status.queue_images)} of at most {_count(status.queue_limit)} images; "
    waiting += f"requests: {_count(status.queue_requests)}, clients: {_count(status.queue_clients)}"
    held, held_unit = _bytes(status.memory_bytes)
    most, most_unit = _bytes(status.memory_limit_bytes)
    bars = [
        meter("Queue", status.queue_images, status.queue_limit, waiting),
        meter(
            "Memory of requests",
            status.memory_bytes,
            status.memory_limit_bytes,
            f"{held} {held_unit} of at most {most} {most_unit}",
        ),
    ]
    facts = [("Being answered", _count(status.in_flight)), ("Streams open", _count(status.streams))]
    plain = [Markup(f'<div class="fact"><dt>{name}</dt><dd>{value}</dd></div>') for name, value in facts]
    return section("queue", "Queue", Markup(f"<dl>\n{join([*bars, *plain])}\n</dl>"))


def _stages(status: Status) -> Markup:
    traffic = status.traffic
    rows = [
        (stage, _STAGES[stage], _count(count), " ".join(_latency(seconds / count if count else None)))
        for stage, (seconds, count) in traffic.stages.items()
    ]
    busy = traffic.stages.get("compute", (0.0, 0.0))[0] / traffic.lately_s if traffic.lately_s else 0.0
    size = traffic.pass_images / traffic.passes if traffic.passes else 0.0
    return section(
        "stages",
        "Where time goes",
        table("Stages of requests in the last minute", ("Stage", "What it is", "How often", "Mean"), rows),
        note(f"In the last minute the engine computed {min(busy, 1.0):.0%} of the time, {size:.3g} images a pass."),
    )


def _clients(clients: Sequence[Client]) -> Markup:
    if not clients:
        return section("clients", "Clients", note("Nobody has been answered yet."))
    rows = [
        (client.name or "(no name)", _count(client.images_per_s), _count(client.num_images), _ago(client.seen_s))
        for client in clients[:_MOST_CLIENTS]
    ]
    parts = [table("Clients, busiest first", ("Client", "Images / s", "Images", "Last answer"), rows)]
    if len(clients) > _MOST_CLIENTS:
        parts.append(note(f"And {len(clients) - _MOST_CLIENTS} more."))
    return section("clients", "Clients", *parts)


def _datasets(status: Status) -> Markup:
    if not status.datasets:
        return section("datasets", "Datasets", note(Markup("None; <code>--dataset NAME=SHARDS</code> streams one.")))
    rates = status.traffic.dataset_images_per_s
    rows = [
        (
            line.name,
            _count(line.num_samples),
            _count(line.num_shards),
            _count(line.subscriptions),
            _count(rates.get(line.name, 0.0)),
            _count(line.num_images),
            _count(line.num_skipped),
        )
        for line in status.datasets
    ]
    columns = ("Dataset", "Samples", "Shards", "Subscriptions", "Images / s", "Images sent", "Left out")
    return section("datasets", "Datasets", table("Datasets that are streamed", columns, rows))


def _problems(status: Status) -> Markup:
    if not status.problems:
        return section("problems", "Recent errors", note("None since the start."))
    rows = [
        (problem.kind, problem.source, _count(problem.count), _ago(problem.last_s), problem.text)
        for problem in status.problems
    ]
    columns = ("Error", "Where", "How often", "Last", "What was said")
    return section("problems", "Recent errors", table("Refusals, warnings and errors, newest first", columns, rows))


def _gallery(status: Status) -> Markup:
    title = "Latest mixed pictures"
    if not status.has_gallery:
        off = Markup("Off: it shows clients' data to whoever opens this page. <code>--gallery</code> turns it on.")
        return section("gallery", title, note(off))
    if not status.pictures:
        return section("gallery", title, note("Nothing has been mixed yet."))
    figures = Markup(f'<ul class="gallery">\n{join(map(_figure, status.pictures))}\n</ul>')
    words = note("Left to right: an image, its partner, and their mix. At most one each second is kept.")
    return section("gallery", title, figures, words)


def _figure(picture: PictureLine) -> Markup:
    alt = f"An image, its partner, and their mix by {picture.mixer}: {picture.lam:.0%} of the first"
    caption = f"{picture.lam:.0%} + {1 - picture.lam:.0%} by {picture.mixer}, {picture.width} x {picture.height} px, "
    caption += f"for {picture.client}, {_ago(picture.age_s)}"
    return Markup(
        f'<li id="picture-{text(picture.key)}"><figure><img src="gallery/{text(picture.key)}.jpg" alt="{text(alt)}" '
        f'width="392" height="128"><figcaption>{text(caption)}</figcaption></figure></li>'
    )


def _count(number: float) -> str:
    if number and number < 10 and number != int(number):
        return f"{number:.2g}" if number >= 0.1 else "< 0.1"
    return f"{number:,.0f}"


def _latency(seconds: float | None) -> tuple[str, str]:
    if seconds is None:
        return "-", ""
    return (f"{seconds:.3g}", "s") if seconds >= 1 else (f"{1000 * seconds:.3g}", "ms")


def _bytes(number: float) -> tuple[str, str]:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, {"B": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{number:.3g}", unit


def _ago(seconds: float) -> str:
    return "now" if seconds < 1 else f"{_duration(seconds)} ago"


def _duration(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
