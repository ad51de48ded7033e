"""The style sheet of the reports: readable on a telephone, in the dark and on paper."""

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC",
  "PingFang SC", "Microsoft YaHei", sans-serif;
  --ink: #1f2937; --soft: #4b5563; --line: #cbd5e1; --grid: #e5e7eb; --card: #f3f4f6;
  --page: #ffffff; --warn: #b45309; --good: #047857; --heat: 37, 99, 235; --on: #ffffff;
  --c0: #2563eb; --c1: #c2410c; --c2: #047857; --c3: #7e22ce; --c4: #be185d; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #a8b0bd; --line: #4b5563;
  --grid: #2b3442; --card: #1b2430; --page: #10161f; --warn: #fcd34d; --good: #34d399;
  --heat: 96, 165, 250; --on: #0b1220; --c0: #60a5fa; --c1: #fb923c; --c2: #34d399;
  --c3: #c084fc; --c4: #f472b6; --c5: #22d3ee; } }
@media print { details::details-content { content-visibility: visible; display: block; }
  .scroll { overflow: visible; } figure, tr { break-inside: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1rem; background: var(--page);
  color: var(--ink); }
h1 { font-size: 1.5rem; margin: .25rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; border-bottom: 2px solid var(--line); padding-bottom: .25rem;
  margin: 2rem 0 .75rem; overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p, li { max-width: 75ch; overflow-wrap: anywhere; } ul { padding-left: 1.2rem; margin: .5rem 0; }
.warning { border-left: 4px solid var(--warn); background: var(--card); padding: .4rem .75rem;
  max-width: 78ch; } ul.warning { padding-left: 2rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .45rem .75rem; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 1rem 0; min-width: 0; max-width: 32rem; } .charts figure { margin: 0; }
figure.wide { max-width: none; }
figcaption { font-weight: 600; font-size: .95rem; overflow-wrap: anywhere; }
svg { display: block; } svg:not(.natural) { width: 100%; height: auto; max-width: 40rem; }
pre { background: var(--card); border-radius: .5rem; padding: .75rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; } svg text { fill: var(--soft); font-size: 12px; }
svg path { fill: none; vector-effect: non-scaling-stroke; }
svg .grid { stroke: var(--grid); } svg .frame { stroke: var(--line); }
svg .line { stroke-width: 2; stroke-linejoin: round; } svg .flat { stroke-dasharray: 6 4; }
svg .ideal { stroke: var(--soft); stroke-dasharray: 3 3; } svg .band { fill-opacity: .18; }
svg text.ink { fill: var(--ink); } svg text.on { fill: var(--on); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0;
  padding: 0; font-size: .85rem; color: var(--soft); }
.key { display: inline-block; width: 1.1rem; border-top: 3px solid; vertical-align: middle;
  margin-right: .4rem; print-color-adjust: exact; } .key.flat { border-top-style: dashed; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem;
  margin: .5rem 0; }
.caption { color: var(--soft); font-size: .92rem; margin: 1rem 0 0; }
th, td { padding: .25rem .65rem; border-bottom: 1px solid var(--grid); text-align: right;
  vertical-align: top; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; } tbody th { font-weight: 500; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: break-word;
  max-width: 38rem; } td.long, th.long { min-width: 15rem; }
@media (max-width: 500px) { th.text, td.text { overflow-wrap: anywhere; min-width: 6.5rem;
  max-width: 9rem; } td.long { min-width: 13rem; max-width: none; } }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
"""
_COLOUR = """\
svg path.c{n} {{ stroke: var(--c{n}); }} svg .band.c{n}, svg .bar.c{n}, svg .dot.c{n} \
{{ fill: var(--c{n}); stroke: none; }} .key.c{n} {{ border-color: var(--c{n}); }}
"""
COLOURS = 6
SHADES = 10
STYLE += "".join(_COLOUR.format(n=n) for n in range(COLOURS))
STYLE += "".join(
    f"svg .s{n} {{ fill: rgba(var(--heat), {0.06 + n * 0.094:.2f}); }}\n" for n in range(SHADES)
)
