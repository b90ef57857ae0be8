"""Servers of small random exports, in a thread of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import httpx
import numpy as np

from kd_jax.runtime import compared, store
from kd_jax.runtime.compared import Described
from kd_jax.runtime.contexts import HistoryMap, MeanTower
from kd_jax.runtime.text_map import TextMap, keys_of
from kd_jax.serving.server.app import create, server
from kd_jax.serving.server.limits import Limits
from kd_jax.serving.server.state import State

USERS, ITEMS, DIM = 5, 40, 8
SEEN = 3  # items of a user


def export_of(seed=0, tower=False, texts=False, text_map=False, title="Film 0 é"):
    """Random vectors; user n has seen the items 3n to 3n + 2."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    context = HistoryMap(normal(DIM, DIM), normal(DIM), 5.0, 1.0)
    if tower:
        kernels = (normal(DIM, DIM), normal(DIM), normal(DIM, 4), normal(4), normal(4, DIM))
        context = MeanTower(*kernels, normal(DIM), length=4)
    return store.Export(
        {"model": "distilled", "student": "mf", "dataset": {"name": "toy", "checksum": "0"}},
        user_ids=list(range(100, 100 + USERS)),
        item_ids=[f"film/{n}" if texts else 1000 + n for n in range(ITEMS)],
        titles=[title, *(f"Film {n} é" for n in range(1, ITEMS - 2))] + ["Twice"] * 2,
        item_vectors=normal(ITEMS, DIM),
        item_bias=normal(ITEMS),
        user_vectors=normal(USERS, DIM),
        indptr=np.arange(USERS + 1, dtype=np.int64) * SEEN,
        items=np.arange(USERS * SEEN, dtype=np.int32),
        context=context,
        text_map=read_words(normal) if text_map else None,
    )


def read_words(normal):
    keys = np.array(sorted(keys_of("a red film")), np.uint64)
    return TextMap(
        keys, np.ones(len(keys), np.float32), normal(len(keys), DIM + 1), normal(DIM + 1)
    )


def write(workdir, **options):
    store.write(workdir / "export" / store.FILE, export_of(**options))
    return workdir


def described(*names):
    """The entries of the page for these models."""
    return [Described(name, f"is {name}", 4000, "#00916a", "#2fc79d") for name in names]


def write_compared(workdir, *names, **options):
    """As ``write``, with further models whose vectors are other random numbers."""
    write(workdir, **options)
    export = export_of(**options)
    for seed, name in enumerate(names, 1):
        compared.write(workdir / "export", name, export_of(seed=seed, **options))
    listed = described(*names, "distilled")
    compared.write_list(workdir / "export", listed, export.description["dataset"])
    return workdir


@contextlib.contextmanager
def client_of(workdir, **limits):
    with served(State(workdir), **limits) as client:
        yield client


@contextlib.contextmanager
def served(state, **limits):
    """A client of a server in a thread of this process."""
    listening = socket.create_server(("127.0.0.1", 0))
    running = server(create(state, Limits(**limits)))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            yield client
    finally:
        running.should_exit = True
        thread.join()
        listening.close()
