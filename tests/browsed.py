"""Pages opened in a headless Chromium at the width of a desk, of a phone and of paper; what a script measures there."""

import html
import json
import re
import shutil
import subprocess

import pytest

WIDTHS = {"desk": 1280, "phone": 390, "print": 718}  # A4 with margins of a centimetre

MEASURE = """<script>addEventListener('load', () => {
  const all = (what) => [...document.querySelectorAll(what)];
  const inside = (e) => e.closest('.wide') && getComputedStyle(e.closest('.wide')).overflowX === 'auto';
  parent.postMessage({name: NAME, found: {
    beyond: all('main *').filter((e) => !inside(e) && !e.classList.contains('skip')
      && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 120)),
    text: Math.min(99, ...all('figure img').map((e) => e.clientWidth / e.dataset.points * e.dataset.smallest)),
    figures: all('figure img').length,
    silent: all('figure img').filter((e) => !/[0-9]/.test(e.alt)).length,
    boxes: all('.wide').filter((e) => e.tabIndex !== 0 || !e.getAttribute('aria-label')).length,
    headings: all('h2').filter((e) => !document.querySelector(`nav a[href="#${e.id}"]`)).length,
    twice: all('[id]').length - new Set(all('[id]').map((e) => e.id)).size,
    headers: all('th:not([scope])').length,
    unnamed: all('tbody tr').filter((e) => !e.querySelector('th[scope=row]')).length,
    mains: all('main').length, first: all('a')[0].className, open: all('details[open]').length,
  }}, '*') })</script>"""


def browser():
    """The path of Chromium; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    return found or pytest.skip("no Chromium on this machine to open pages in")


def run(*options):
    """What Chromium says."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


def measured(pages, folder):
    """{(name, medium): what was measured} of {name: path of a page}, all of them in one Chromium."""
    frames = []
    for name, path in pages.items():
        for medium, width in WIDTHS.items():
            text = path.read_text(encoding="utf-8")
            text = text.replace("@media print", "@media all") if medium == "print" else text
            script = MEASURE.replace("NAME", json.dumps(f"{name} {medium}"))
            (folder / f"{name}-{medium}.html").write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
            frames.append(f'<iframe src="{name}-{medium}.html" width="{width}" height="800"></iframe>')
    collect = "onmessage = (m) => { all[m.data.name] = m.data.found; out.textContent = JSON.stringify(all) }"
    head = (
        f'<!doctype html><pre id="out"></pre><script>const all = {{}}, out = document.getElementById("out"); {collect}</script>'
    )
    (folder / "frames.html").write_text(head + "".join(frames), encoding="utf-8")
    seen = run("--virtual-time-budget=30000", "--dump-dom", (folder / "frames.html").as_uri())
    found = json.loads(html.unescape(re.search('<pre id="out">(.*?)</pre>', seen, re.S)[1]))
    return {tuple(key.rsplit(" ", 1)): value for key, value in found.items()}
