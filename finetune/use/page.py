"""The page of `finetune demo`: a form, and what the model says. Self-contained."""

import html
import json
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 44rem; padding: 1rem; }
h1 { font-size: 1.25rem; }
label { display: block; margin: .75rem 0 .25rem; }
textarea { box-sizing: border-box; font: inherit; padding: .5rem; width: 100%; }
button { font: inherit; margin: .75rem 0; padding: .4rem 1.2rem; }
#answer { font-size: 1.4rem; font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; }
#error { color: #c62828; }
.row { align-items: center; display: grid; gap: .5rem; grid-template-columns: 11rem 1fr 4rem; }
.row span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #1976d2; border-radius: 2px; height: .8rem; min-width: 1px; }
@media (max-width: 480px) { .row { grid-template-columns: 7rem 1fr 4rem; } }
"""

_SCRIPT = """
const form = document.forms[0], names = %(fields)s, shown = 10;
const place = id => document.getElementById(id);
function row(name, share) {
  const line = document.createElement("div"), bar = document.createElement("div");
  const label = document.createElement("span"), value = document.createElement("span");
  line.className = "row"; bar.className = "bar";
  bar.style.width = (100 * share) + "%%";
  label.textContent = label.title = name;
  value.textContent = (100 * share).toFixed(1) + " %%";
  line.append(label, bar, value);
  return line;
}
function show(said) {
  const answer = said.predicted;
  place("answer").textContent = typeof answer === "object" ? JSON.stringify(answer) : answer;
  const all = Object.entries(said.probabilities || {}).sort((a, b) => b[1] - a[1]);
  place("shares").replaceChildren(...all.slice(0, shown).map(([n, p]) => row(n, p)));
}
form.addEventListener("submit", async event => {
  event.preventDefault();
  place("error").textContent = "";
  const values = Object.fromEntries(names.map(name => [name, form.elements[name].value]));
  try {
    const got = await fetch("/predict", {method: "POST", body: JSON.stringify(values),
      headers: {"Content-Type": "application/json", "X-Token": %(token)s}});
    if (!got.ok) throw new Error(await got.text());
    show(await got.json());
  } catch (error) { place("error").textContent = error.message; }
});
"""


def page(kind: str, fields: Sequence[str], token: str) -> str:
    """The page for a task that reads these fields; `token` proves that a request is the page's."""
    boxes = "".join(
        f'<label for="field-{html.escape(name)}">{html.escape(name)}</label>'
        f'<textarea id="field-{html.escape(name)}" name="{html.escape(name)}" rows="3"></textarea>'
        for name in fields
    )
    script = _SCRIPT % {"fields": _in_script(list(fields)), "token": _in_script(token)}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(kind)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(kind)}</h1><form>{boxes}<button>Ask</button></form>"
        '<p id="error" role="alert"></p><p id="answer" aria-live="polite"></p>'
        f'<div id="shares"></div><script>{script}</script></body></html>'
    )


def _in_script(value: object) -> str:
    """JSON that ends no script element."""
    return json.dumps(value).replace("<", "\\u003c")
