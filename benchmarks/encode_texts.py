"""Texts and tokens per second of a text encoder on a catalogue of film titles.

python benchmarks/encode_texts.py --movies=movies.dat            # MovieLens layout: id::title (year)::genre|genre
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax.numpy as jnp
import polars as pl

from kd_jax.data import text
from kd_jax.models.hf import load_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", type=Path, required=True)
    parser.add_argument("--weights", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_tokens", type=int, nargs="+", default=[1024])
    flags = parser.parse_args()
    rows = [line.split("::") for line in flags.movies.read_text(encoding="utf-8", errors="replace").splitlines()]
    items = pl.DataFrame({"title": [row[1] for row in rows], "genres": [row[2].split("|") for row in rows]})
    texts = text.item_texts(items, ["title", "genres"])

    start = time.perf_counter()
    encoder, tokenizer = load_encoder(flags.weights, backend=flags.backend, dtype=jnp.dtype(flags.dtype))
    loaded = time.perf_counter()
    table = text.tokenize(tokenizer, texts, encoder.max_length)
    print(
        f"{len(table):,} texts, {len(table.ids):,} tokens; loading {loaded - start:.2f} s, "
        f"tokenizing {time.perf_counter() - loaded:.2f} s"
    )
    for batch_tokens in flags.batch_tokens:
        for run in ("with compilation", "again"):
            start, start_cpu = time.perf_counter(), time.process_time()
            text.encode(encoder, table, batch_tokens=batch_tokens)
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            print(
                f"batch_tokens={batch_tokens} {run}: {seconds:.2f} s ({cpu:.1f} s of CPU), "
                f"{len(table) / seconds:,.0f} texts/s, {len(table.ids) / seconds:,.0f} tokens/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
