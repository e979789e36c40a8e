"""A bar chart as SVG, by hand: CPU per request of each target. Readable on light and dark pages, without scripts or fonts of its own."""

from xml.sax.saxutils import escape

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 760, 250, 130
BAR_HEIGHT, BAR_STEP, TOP = 20, 30, 64
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 16px }
    .small { font-size: 12px; fill: #59636e }
    .ours { fill: #1a7f37 } .plain { fill: #8c959f } .job { fill: #bf8700 } .beside { opacity: 0.45 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc } .small { fill: #9198a1 }
      .ours { fill: #3fb950 } .plain { fill: #6e7681 } .job { fill: #d29922 }
    }
"""


def bars(title, subtitle, entries):
    """`entries`: (label, kind, own value, value beside it), kinds ours, plain and job."""
    height = TOP + BAR_STEP * len(entries) + 12
    most = max((own + beside for _, _, own, beside in entries), default=1) or 1
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / most
    lines = [bar(place, entry, scale) for place, entry in enumerate(entries)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"  <title>{escape(title)}</title>", f"  <style>{STYLE}  </style>",
        f'  <text class="title" x="12" y="24">{escape(title)}</text>', f'  <text class="small" x="12" y="44">{escape(subtitle)}</text>',
        *lines, "</svg>", ""])


def bar(place, entry, scale):
    label, kind, own, beside = entry
    top = TOP + BAR_STEP * place
    middle = top + BAR_HEIGHT * 0.72
    end = LABEL_WIDTH + (own + beside) * scale
    value = f"{own:.1f} µs" + (f" + {beside:.1f}" if beside >= 0.05 else "")
    parts = [f'  <text x="{LABEL_WIDTH - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>',
             f'  <rect class="{kind}" x="{LABEL_WIDTH}" y="{top}" width="{own * scale:.1f}" height="{BAR_HEIGHT}"/>']
    if beside >= 0.05:
        parts.append(f'  <rect class="{kind} beside" x="{LABEL_WIDTH + own * scale:.1f}" y="{top}" width="{beside * scale:.1f}" height="{BAR_HEIGHT}"/>')
    return "\n".join([*parts, f'  <text x="{end + 8:.1f}" y="{middle:.1f}">{value}</text>'])
