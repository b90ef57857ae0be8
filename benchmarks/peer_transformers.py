"""transformers' PyTorch classes as a contestant of ``lm_throughput.py``.

    python benchmarks/peer_transformers.py --spec=SPEC.json

It needs torch and transformers, but not kd_jax. It also has the parts that all contestants share,
so at the top it imports only numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# A contestant is called with nothing; it returns its vectors or losses, and how many tokens it
# computed, padding too.
Contestant = Callable[[], tuple[np.ndarray, int]]


class Tokens:
    """Token ids of N texts, without padding: text n is ``ids[indptr[n] : indptr[n + 1]]``."""

    def __init__(self, path: str, first: int | None = None):
        """The ``first`` texts of a file of ``lm_throughput.py``, or all."""
        with np.load(path, allow_pickle=False) as file:
            self.ids = file["ids"]
            self.pad_id = int(file["pad_id"])
            self.indptr = file["indptr"][: None if first is None else first + 1]
            self.ids = self.ids[: self.indptr[-1]]
            self.targets = file["targets"][
                :first
            ]  # f32 [N, D], what fine-tuning moves the vectors to
        self.lengths = np.diff(self.indptr)

    def padded(self, rows: np.ndarray, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, padded on the right to the longest text, and on to a ``multiple``."""
        length = -(-int(self.lengths[rows].max()) // multiple) * multiple
        ids = np.full((len(rows), length), self.pad_id, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for place, row in enumerate(rows):
            found = self.ids[self.indptr[row] : self.indptr[row + 1]]
            ids[place, : len(found)] = found
            mask[place, : len(found)] = 1
        return ids, mask

    def as_they_come(self, batch: int) -> list[np.ndarray]:
        rows = np.arange(len(self.lengths))
        return [rows[start : start + batch] for start in range(0, len(rows), batch)]

    def by_length(self, batch: int) -> list[np.ndarray]:
        """Sorted, as sentence-transformers does."""
        order = np.argsort(self.lengths, kind="stable")
        return [order[start : start + batch] for start in range(0, len(order), batch)]

    def of_one_length(self, batch: int) -> list[np.ndarray]:
        """Batches without any padding."""
        groups = (np.flatnonzero(self.lengths == length) for length in np.unique(self.lengths))
        return [
            rows[start : start + batch] for rows in groups for start in range(0, len(rows), batch)
        ]


def serve(
    contestants: dict[str, Contestant],
    ceiling: Callable[[], float],
    versions: dict[str, str],
    cpu_time: bool,
) -> None:
    """Prints a description, then runs one contestant for each line of stdin.

    Prints seconds, computed tokens and the peak rate in FLOP/s. A line may have a path after the
    name, to which the values are written. cpu_time: seconds of this process, instead of wall clock.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    # Keeps the output of libraries apart from the results.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(
        json.dumps({"contestants": list(contestants), "versions": versions}),
        file=results,
        flush=True,
    )
    for line in sys.stdin:
        name, _, path = line.rstrip("\n").partition("\t")
        found: dict[str, Any] = {"ceiling": ceiling()}
        start = clock()
        values, tokens = contestants[name]()
        found |= {"seconds": clock() - start, "tokens": tokens}
        if path:
            np.save(path, values, allow_pickle=False)
        print(json.dumps(found), file=results, flush=True)


def read_spec() -> dict[str, Any]:
    """From ``--spec``; keeps this process to as many cores as it names threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    spec = json.loads(parser.parse_known_args()[0].spec.read_text())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    return spec


def main() -> None:
    spec = read_spec()
    import torch
    from transformers import AutoModel, logging

    logging.set_verbosity_error()
    torch.set_num_threads(spec["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = spec["dtype"] == "float32"

    def model() -> Any:
        found = AutoModel.from_pretrained(
            spec["weights"], local_files_only=True, torch_dtype=torch.float32
        )
        found.pooler = None  # vectors come from hidden states
        return found.eval().to(device)  # without dropout, as everybody here

    def computing() -> Any:
        return (
            contextlib.nullcontext()
            if plain
            else torch.autocast(device, getattr(torch, spec["dtype"]))
        )

    def vectors(model: Any, ids: np.ndarray, mask: np.ndarray) -> Any:
        given = torch.from_numpy(mask).to(device)
        with computing():
            hidden = model(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=given
            ).last_hidden_state
        weights = given[..., None].float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)

    frozen = model().to(getattr(torch, spec["dtype"]))

    def encoding(tokens: Tokens, batches: list[np.ndarray]) -> Contestant:
        def run() -> tuple[np.ndarray, int]:
            found = np.zeros_like(tokens.targets)
            computed = 0
            with torch.inference_mode():
                for rows in batches:
                    ids, mask = tokens.padded(rows)
                    found[rows] = vectors(frozen, ids, mask).cpu().numpy()
                    computed += ids.size
            return found, computed

        return run

    def training(tokens: Tokens, batch: int) -> Contestant:
        batches = tokens.as_they_come(batch)
        trained: list[Any] = []  # built when it is first run

        def run() -> tuple[np.ndarray, int]:
            if not trained:
                trained.append(model())
                trained.append(
                    torch.optim.AdamW(
                        trained[0].parameters(), spec["rate"], weight_decay=0.01, fused=True
                    )
                )
            net, optimizer = trained
            losses = np.zeros(len(batches), np.float32)
            computed = 0
            for step, rows in enumerate(batches):
                ids, mask = tokens.padded(rows)
                targets = torch.from_numpy(tokens.targets[rows]).to(device)
                loss = ((vectors(net, ids, mask) - targets) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[step] = loss.item()
                computed = computed + ids.size
            return losses, computed

        return run

    contestants: dict[str, Contestant] = {}
    for case, path in spec["cases"].items():
        tokens = Tokens(path)
        if len(np.unique(tokens.lengths)) == 1:
            best = max(1, spec["tokens"] // int(tokens.lengths[0]))
            contestants[f"{case}: equal lengths, {best}"] = encoding(
                tokens, tokens.of_one_length(best)
            )
            continue
        for batch in (32, 128):
            contestants[f"{case}: padded, {batch}"] = encoding(tokens, tokens.as_they_come(batch))
        contestants[f"{case}: sorted, 32"] = encoding(tokens, tokens.by_length(32))
        contestants[f"{case}: equal lengths, 64"] = encoding(tokens, tokens.of_one_length(64))
        contestants[f"{case}: fine-tuning, padded"] = training(
            Tokens(path, spec["trained"]), spec["batch"]
        )

    square = torch.ones(
        spec["square"], spec["square"], dtype=getattr(torch, spec["dtype"]), device=device
    )

    def ceiling() -> float:
        torch.mm(square[:512], square)
        start = time.perf_counter()
        torch.mm(square, square)[0, 0].item()
        return 2 * spec["square"] ** 3 / (time.perf_counter() - start)

    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    versions |= {"python": platform.python_version(), "device": device}
    serve(contestants, ceiling, versions, spec["cpu_time"])


if __name__ == "__main__":
    main()
