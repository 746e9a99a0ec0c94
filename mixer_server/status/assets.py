"""What the status page is drawn and driven by, and the headers that allow a browser nothing else."""

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --ink: #1a2230; --soft: #566072; --line: #d9dee6; --back: #f5f6f8; --card: #fff;
  --accent: #1d5fc4; --good: #14713a; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a0a9b8; --line: #303846; --back: #12161d;
  --card: #1a202a; --accent: #79aef7; --good: #62cc8b; --bad: #ff8a80 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
a { color: var(--accent) }
.page { max-width: 82rem; margin: 0 auto; padding: 1.25rem 1.5rem 3rem }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; margin-bottom: 1rem }
h1 { font-size: 1.4rem; line-height: 1.2; margin: 0 }
h2 { font-size: 1.05rem; margin: 0 0 .6rem }
.state { display: inline-block; margin: 0; font-weight: 600; color: var(--bad); overflow-wrap: anywhere }
.state::before { content: "\\25CF"; margin-right: .4em }
.state.ready { color: var(--good) }
.facts { margin: 0; color: var(--soft); font-size: .9rem }
.controls { margin-left: auto; display: flex; align-items: center; gap: .75rem; color: var(--soft); font-size: .9rem }
button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  min-height: 2.25rem; padding: .2rem .9rem; cursor: pointer }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
.lost { color: var(--bad); font-weight: 600 }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem;
  margin-bottom: 1rem; min-width: 0 }
#live { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem }
#live > * { grid-column: 1 / -1; margin: 0 }
#live > .half { grid-column: auto }
dl { margin: 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1rem }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-variant-numeric: tabular-nums }
.value { font-size: 1.75rem; line-height: 1.2; font-weight: 600 }
.unit { color: var(--soft) }
.remark { display: block; color: var(--soft); font-size: .85rem }
.meter { margin-bottom: .5rem }
meter { width: 100%; height: .9rem; vertical-align: middle }
.fact { display: grid; grid-template-columns: 9rem minmax(0, 1fr); align-items: baseline }
.chart { display: block; width: 100%; height: 7.5rem; border-bottom: 1px solid var(--line) }
.chart polygon { fill: var(--accent); opacity: .15 }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 2; vector-effect: non-scaling-stroke }
.axis { display: flex; justify-content: space-between; margin: .25rem 0 0; color: var(--soft); font-size: .85rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere }
tbody tr:last-child > * { border-bottom: 0 }
thead th { color: var(--soft); font-weight: 400; font-size: .85rem; overflow-wrap: normal }
tbody th { font-weight: 600 }
.note { margin: 0; color: var(--soft) }
* + .note { margin-top: .6rem }
code { overflow-wrap: anywhere }
.gallery { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: .3rem; background: var(--line) }
figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; margin-top: .3rem }
footer { color: var(--soft); font-size: .9rem }
@media (max-width: 44rem) {
  .page { padding: 1rem .8rem 2rem }
  .controls { margin-left: 0; width: 100%; justify-content: space-between }
  #live > .half { grid-column: 1 / -1 }
  .tiles { grid-template-columns: 1fr 1fr }
  .gallery { grid-template-columns: 1fr }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  table, tbody, tr, tbody th, td { display: block; width: 100% }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--line) }
  tr:first-child { padding-top: 0 }
  tbody tr:last-child { border-bottom: 0; padding-bottom: 0 }
  tbody th, td { border: 0; padding: .1rem 0 }
  td { display: grid; grid-template-columns: 8rem minmax(0, 1fr); gap: .6rem;
    align-items: baseline }
  td::before { content: attr(data-label); color: var(--soft); font-size: .85rem }
}
"""

SCRIPT = """
"use strict";
const live = document.getElementById("live"), said = document.getElementById("said");
const button = document.createElement("button");
let isPaused = false;

// Changes only what differs, so that selections, focus and pictures stay. Elements with an id keep their identity.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh.cloneNode(true));
    return;
  }
  for (const name of old.getAttributeNames()) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const name of fresh.getAttributeNames()) {
    if (old.getAttribute(name) !== fresh.getAttribute(name)) old.setAttribute(name, fresh.getAttribute(name));
  }
  fresh.childNodes.forEach((next, place) => {
    const kept = next.id ? document.getElementById(next.id) : null;
    if (kept && kept.parentNode === old && kept !== old.childNodes[place]) {
      old.insertBefore(kept, old.childNodes[place] || null);
    }
    const now = old.childNodes[place];
    if (now && (now.id || "") === (next.id || "")) morph(now, next);
    else old.insertBefore(next.cloneNode(true), now || null);
  });
  while (old.childNodes.length > fresh.childNodes.length) old.lastChild.remove();
}

async function update() {
  try {
    const answer = await fetch("status/live", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    morph(live, fresh);
    const time = new Date().toLocaleTimeString();
    said.textContent = "as of " + time;
    said.className = "";
  } catch (error) {
    said.textContent = "The server does not answer; what is shown is old";
    said.className = "lost";
  }
}

async function loop() {
  if (!isPaused && !document.hidden) await update();
  setTimeout(loop, 2000);
}

button.type = "button";
button.textContent = "Pause updates";
button.addEventListener("click", () => {
  isPaused = !isPaused;
  button.textContent = isPaused ? "Resume updates" : "Pause updates";
});
said.after(button);
setTimeout(loop, 1000);
"""

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1d5fc4"/>'
    '<path d="M0 16 L16 0 V13 a3 3 0 0 1 -3 3 Z" fill="#e8a13a"/></svg>\n'
)


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(STYLE)}",
            f"script-src {_hash(SCRIPT)}",
            "connect-src 'self'",
            "img-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
}
"""Of the page: its own style and script, pictures and numbers of its own server, and nothing else."""
