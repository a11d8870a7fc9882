#!/usr/bin/env python3
"""Draws what a command shows, as an SVG of a terminal.

    command='cargo run --example checkout -- --orders 500'
    $command | python3 docs/pictures/screen.py "$command" > docs/pictures/checkout.svg

A line that is drawn again and again, by a carriage return, is shown as it was last. Long lines are cut.
"""

import html
import re
import sys

COLUMNS = 96
SIZE = 13
WIDTH = 7.83  # of a character, in a monospaced font of this size
HEIGHT = 18
MARGIN = 16

COLOURS = [
    (r"^ ?ok\b|^VERDICT: all", "#56d364"),
    (r"^FAIL|^VERDICT", "#ff7b72"),
    (r"\b[A-Z]{6,}\b", "#ffa657"),
    (r"^\$ ", "#79c0ff"),
]


def lines(text):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for line in text.rstrip().split("\n"):
        line = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
        yield line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"


def draw(command, text):
    shown = [f"$ {command}", *lines(text)]
    width = round(2 * MARGIN + COLUMNS * WIDTH)
    height = 2 * MARGIN + len(shown) * HEIGHT
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{html.escape(command)}">'
    )
    yield f'<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>'
    yield f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="{SIZE}" fill="#c9d1d9">'
    for number, line in enumerate(shown):
        if line:
            colour = next((f' fill="{colour}"' for pattern, colour in COLOURS if re.search(pattern, line)), "")
            y = MARGIN + number * HEIGHT + SIZE
            yield f'<text x="{MARGIN}" y="{y}" xml:space="preserve"{colour}>{html.escape(line, quote=False)}</text>'
    yield "</g>\n</svg>"


print("\n".join(draw(sys.argv[1], sys.stdin.read())))
