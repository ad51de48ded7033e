"""The page's style sheet and, for `--serve` alone, its script; both are allowed by their hash."""

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC",
  "PingFang SC", "Microsoft YaHei", sans-serif;
  --ink: #1f2937; --soft: #4b5563; --line: #d1d5db; --grid: #e5e7eb; --card: #f3f4f6; --page: #fff;
  --bad: #b91c1c; --warn: #b45309; --link: #1d4ed8;
  --c0: #2563eb; --c1: #c2410c; --c2: #047857; --c3: #7e22ce; --c4: #be185d; --c5: #0e7490;
  --c6: #854d0e; --c7: #4b5563; --heat: 37, 99, 235; }
@media (prefers-color-scheme: dark) { :root:root { --ink: #e5e7eb; --soft: #a8b0bd; --line: #4b5563;
  --grid: #2b3442; --card: #1b2430; --page: #10161f; --bad: #fca5a5; --warn: #fcd34d;
  --link: #93c5fd; --c0: #60a5fa; --c1: #fb923c; --c2: #34d399; --c3: #c084fc; --c4: #f472b6;
  --c5: #22d3ee; --c6: #facc15; --c7: #9ca3af; --heat: 96, 165, 250; } }
@media print { :root:root { color-scheme: light; --ink: #000; --soft: #333; --line: #999;
  --grid: #ddd; --card: #f3f4f6; --page: #fff; --bad: #b91c1c; --warn: #b45309;
  --c0: #2563eb; --c1: #c2410c; --c2: #047857; --c3: #7e22ce; --c4: #be185d; --c5: #0e7490;
  --c6: #854d0e; --c7: #4b5563; --heat: 37, 99, 235; }
  .scroll, .scores > .scroll { overflow: visible; max-height: none; }
  figure, tr, dl div { break-inside: avoid; } .choice { display: none !important; }
  details::details-content { content-visibility: visible; display: block; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1rem; background: var(--page);
  color: var(--ink); }
h1 { font-size: 1.5rem; margin: .25rem 0; overflow-wrap: anywhere; }
h2 { border-bottom: 2px solid var(--line); padding-bottom: .25rem; margin: 2rem 0 1rem;
  overflow-wrap: anywhere; }
.scroll { margin: 1rem 0; } h3 + .scroll { margin-top: 0; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1.1rem; } .note { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .5rem .75rem; }
dt { font-size: .8rem; color: var(--soft); } dd { margin: 0; font-weight: 600;
  overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: 1.25rem; } .scores { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; min-width: 0; } .scores figure { flex: 1 1 20rem; max-width: 44rem; }
.scores figure.large { flex-basis: 100%; max-width: 64rem; } .large svg { min-width: 50rem; }
.scores > .scroll { flex: 0 1 auto; max-width: 100%; max-height: 44rem; }
figcaption { font-size: .95rem; overflow-wrap: anywhere; }
.unit { color: var(--soft); font-size: .8rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); }
svg path { fill: none; stroke-width: 1; vector-effect: non-scaling-stroke; }
.grid { stroke: var(--grid); } .tick, .frame { stroke: var(--line); fill: none; }
svg .line { stroke-width: 1.8; stroke-linejoin: round; } svg .thin { stroke-opacity: .35; }
svg .band { fill-opacity: .28; stroke-opacity: .35; stroke-width: .6; }
svg .mark { stroke: var(--warn); stroke-width: 1.2; stroke-dasharray: 3 3; pointer-events: stroke; }
svg .mark.rollback, svg .mark.not-finite, svg .mark.drift { stroke: var(--bad); }
svg .on-dark { fill: #fff; }
@media (prefers-color-scheme: dark) { svg .on-dark { fill: #0b1220; } }
@media print { svg .on-dark { fill: #fff; } }
svg .line.dashed { stroke-dasharray: 6 3; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .1rem 0 0;
  padding: 0 0 0 3rem; font-size: .82rem; color: var(--soft); }
.legend li { overflow-wrap: anywhere; min-width: 0; }
.key { display: inline-block; width: 1.1rem; border-top: 3px solid; vertical-align: middle;
  margin-right: .4rem; print-color-adjust: exact; } .key.dashed { border-top-style: dashed; }
.key.event { border-top: 3px dotted var(--warn); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--grid); text-align: right;
  vertical-align: top; } thead th { color: var(--soft); font-weight: 600; }
td.text, th.text, th:first-child { text-align: left; } tbody th { font-weight: 500; }
td.text { overflow-wrap: anywhere; min-width: 8rem; } td.code { font-family: monospace; }
pre { background: var(--card); border-radius: .5rem; padding: .75rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.sample { white-space: pre-wrap; }
mark { background: none; color: var(--c0); font-weight: 600; }
summary { cursor: pointer; padding: .35rem 0; }
.missing { border-left: 4px solid var(--warn); padding: .25rem .75rem; background: var(--card); }
.missing ul { margin: .25rem 0; padding: 0 1rem; }
.choice { position: absolute; opacity: 0; width: 1px; height: 1px; }
.choices { font-size: .9rem; margin: .5rem 0; }
.choices label { border: 1px solid var(--line); padding: .15rem .6rem; cursor: pointer;
  border-radius: .4rem; margin-left: .35rem; }
.by-tokens { display: none; } #x-tokens:checked ~ main .by-step { display: none; }
#x-tokens:checked ~ main .by-tokens { display: block; }
#x-step:checked ~ .choices label[for=x-step], #x-tokens:checked ~ .choices label[for=x-tokens] {
  background: var(--ink); color: var(--page); }
.choice:focus-visible ~ .choices { outline: 2px solid var(--link); outline-offset: 2px; }
"""
_COLOUR = """\
svg .c{n} {{ stroke: var(--c{n}); }} svg .band.c{n}, svg .dot.c{n} {{ fill: var(--c{n}); }}
.key.k{n} {{ border-color: var(--c{n}); }}
"""
_SHADE = "svg .s{n} {{ fill: rgba(var(--heat), {share:.2f}); }}\n"
STYLE += "".join(_COLOUR.format(n=n) for n in range(8))
STYLE += "".join(_SHADE.format(n=n, share=0.08 + n / 10) for n in range(10))

# Asks for the page again and puts its content in place: what was unfolded stays so, and nothing
# moves. A page that has not changed is not sent.
SCRIPT = """
'use strict';
const EVERY_MS = 5000;
const state = document.getElementById('state');
let tag = null;
function unfolded() {
  return new Set([...document.querySelectorAll('details[open]')].map((one) => one.id));
}
async function refresh() {
  try {
    const headers = tag ? { 'If-None-Match': tag } : {};
    const answer = await fetch('/', { headers, cache: 'no-store' });
    if (answer.status === 200) {
      tag = answer.headers.get('ETag');
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const open = unfolded(), x = window.scrollX, y = window.scrollY;
      for (const one of page.querySelectorAll('details')) one.open = open.has(one.id);
      document.querySelector('main').replaceWith(page.querySelector('main'));
      document.title = page.title;
      window.scrollTo(x, y);
    }
    state.textContent = 'live, looked at ' + new Date().toLocaleTimeString();
  } catch (error) {
    state.textContent = 'the server has gone; this is the last state';
  }
  setTimeout(refresh, EVERY_MS);
}
setTimeout(refresh, EVERY_MS);
"""


def hash_of(text: str) -> str:
    """The source expression of a Content Security Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
