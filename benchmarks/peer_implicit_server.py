"""A minimal server of recommendations with implicit, as the peer of ``serving_http.py``.

    python benchmarks/peer_implicit_server.py --data=FOLDER [--port=0]

It runs in an environment with implicit, fastapi and uvicorn[standard]. The folder has
``interactions.npz`` (``peer_implicit_lists.py``), with ``item_ids`` and ``titles``. Alternating
least squares is fitted to it; ``POST /v1/recommend`` with ``history`` and ``k`` computes the user's
factors from the history (``recalculate_user``) and returns the best items that are not in it, in
the form of our server.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from peer_implicit_lists import fitted, interactions
from pydantic import BaseModel
from scipy.sparse import csr_matrix


class Body(BaseModel):
    history: list[int | str]
    k: int = 10


def create(folder: Path, factors: int) -> FastAPI:
    path = folder / "interactions.npz"
    matrix = interactions(path)
    with np.load(path) as file:
        ids, titles = file["item_ids"].tolist(), file["titles"].tolist()
    model = fitted(matrix, factors, threads=1)
    places = {name: place for place, name in enumerate(ids)}
    found = FastAPI()

    @found.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    # async: a thread for each request made it slower
    @found.post("/v1/recommend")
    async def recommend(body: Body) -> dict[str, object]:
        items = np.unique([places[name] for name in body.history])
        ones = np.ones(len(items), np.float32)
        row = csr_matrix((ones, items, [0, len(items)]), shape=(1, len(ids)))
        best, scores = model.recommend(0, row, N=body.k, recalculate_user=True)
        listed = enumerate(zip(best.tolist(), scores.tolist(), strict=True), 1)
        rows = [
            {"rank": rank, "item": ids[item], "title": titles[item], "score": score}
            for rank, (item, score) in listed
        ]
        return {"items": rows, "model": "implicit"}

    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    app = create(options.data, options.factors)
    with socket.create_server(("127.0.0.1", options.port)) as listening:
        print(f"serving on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
