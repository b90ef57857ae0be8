"""How long a click on the page of the server takes.

python -m kd_jax.serve --workdir=runs/quickstart
python benchmarks/page.py --url=http://127.0.0.1:8000 [--browser]

The lists of all models, by HTTP. With --browser also the page in Chromium: the wall time from the
click until the lists are drawn, and the processor time of the page's main thread, with layout and
paint, which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

LONGEST = 20  # items of a history
PAUSE = 60  # milliseconds after a click
CLICK = """(async () => {
  const lists = document.getElementById("lists");
  const found = document.querySelectorAll(".found button");
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  if (%(place)d === 0) { document.getElementById("clear").click(); await wait(1000); }
  const began = performance.now();
  const drawn = new Promise((done) => new MutationObserver((_, watch) => {
    watch.disconnect(); done(performance.now() - began);
  }).observe(lists, { attributeFilter: ["data-milliseconds"] }));
  found[%(place)d].click();
  const took = await drawn;
  await wait(%(pause)d);
  return took;
})()"""


def seconds(url: str, clicks: int) -> list[float]:
    """The time of each click; one after the other, they choose ``LONGEST`` items again and again.

    url: of a running server.
    """
    found = []
    with httpx.Client(base_url=url, trust_env=False) as client:
        items = [f"id:{row['item']}" for row in client.get("/v1/search").json()["items"]]
        for click in range(clicks):
            body = {"history": items[: click % LONGEST + 1]}
            began = time.perf_counter()
            client.post("/v1/compare", json=body).raise_for_status()
            found.append(time.perf_counter() - began)
    return found


def in_browser(url: str, clicks: int) -> tuple[list[float], float]:
    """The seconds of each click until its lists are drawn, and the processor time of one."""
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]
    from helpers.browser import browser

    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as tab:
        tab.open(url)
        tab.wait(f"document.querySelectorAll('.found button').length == {LONGEST}")
        tab.wait("document.querySelectorAll('.model li').length > 0")
        tab.call("Performance.enable", timeDomain="threadTicks")
        began = _busy(tab)
        found = [
            1e-3 * tab.run(CLICK % {"place": click % LONGEST, "pause": PAUSE})
            for click in range(clicks)
        ]
        return found, (_busy(tab) - began) / clicks


def _busy(tab) -> float:
    metrics = tab.call("Performance.getMetrics")["metrics"]
    return next(one["value"] for one in metrics if one["name"] == "TaskDuration")


def print_times(what: str, found: list[float]) -> None:
    median, most = np.quantile(1e3 * np.array(found), [0.5, 0.95])
    print(f"{len(found)} {what}: median {median:.1f} ms, 95 % within {most:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clicks", type=int, default=200)
    parser.add_argument("--browser", action="store_true")
    options = parser.parse_args()
    print_times("clicks", seconds(options.url, options.clicks))
    if options.browser:
        found, busy = in_browser(options.url, options.clicks)
        print_times("clicks in Chromium", found)
        print(f"processor time of the page for a click: {1e3 * busy:.1f} ms")


if __name__ == "__main__":
    main()
