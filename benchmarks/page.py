"""How long a click on the page of the server takes: the lists of all models, by HTTP.

python -m kd_jax.serve --workdir=runs/quickstart
python benchmarks/page.py --url=http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import time

import httpx
import numpy as np

LONGEST = 20  # items of a history


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clicks", type=int, default=200)
    options = parser.parse_args()
    values = 1e3 * np.array(seconds(options.url, options.clicks))
    median, most = np.quantile(values, [0.5, 0.95])
    print(f"{options.clicks} clicks: median {median:.1f} ms, 95 % within {most:.1f} ms")


if __name__ == "__main__":
    main()
