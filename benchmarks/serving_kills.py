"""Kills of a server under load: is every acknowledged event kept?

    python benchmarks/serving_kills.py --workdir=runs/quickstart --kills=50

Clients send feedback to ``python -m kd_jax.serve`` all the time, each for a user of its own. At a
random moment the process gets SIGKILL and is started again. Then every event that was acknowledged
must be a line of the feedback file, and the next answer must know it: a list of only the user's
items is empty, as all have been chosen or refused. The workdir is not written to: the server gets a
copy of its export.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving_process import Client, Server, ours
from kd_jax import runtime

EVENTS = ("click", "dislike", "like")
LONGEST = 0.5  # seconds between the first event and the kill
AT_ONCE = 200  # items that one question names


class Kills(NamedTuple):
    """acknowledged, lost: events. unknown: lost to the next answer, though they may be stored."""

    kills: int
    acknowledged: int
    lost: int
    unknown: int


class User(threading.Thread):
    """A client that sends feedback of one user until the server is gone."""

    def __init__(self, name: str, server: Server, items: list[Any], sent: int):
        super().__init__(daemon=True)
        self.user, self.server, self.items, self.sent = name, server, items, sent
        self.acknowledged: list[tuple[Any, ...]] = []
        self.refused: list[Any] = []

    def run(self) -> None:
        client = Client(self.server.host, self.server.port)
        try:
            while not self.refused:
                item = self.items[self.sent % len(self.items)]
                event = EVENTS[self.sent % len(EVENTS)]
                self.sent += 1
                body = {"user": self.user, "item": item, "event": event}
                status, answer = client.send("POST", "/v1/feedback", body)
                if status == 200:
                    self.acknowledged.append(key(answer))
                else:
                    self.refused.append(answer)
        except (OSError, http.client.HTTPException, ValueError):
            pass  # the server is gone
        finally:
            client.close()


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(str(record[name]) for name in ("user", "item", "event", "timestamp"))


def measure(workdir: Path, kills: int, users: int = 4, seed: int = 0) -> Kills:
    """Raises RuntimeError if the server refuses an event or does not start."""
    rng = random.Random(seed)
    items: list[Any] = list(runtime.load(workdir).export.item_ids)
    sent = dict.fromkeys((f"user {n}" for n in range(users)), 0)
    acknowledged: Counter[tuple[Any, ...]] = Counter()
    unknown = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(workdir / "export", folder / "export")
        for _ in range(kills):
            with ours(folder) as server:
                unknown += sum(not_known(server, acknowledged).values())
                clients = [User(user, server, items, count) for user, count in sent.items()]
                for client in clients:
                    client.start()
                time.sleep(rng.uniform(0.05, LONGEST))
                server.end(signal.SIGKILL)
                for client in clients:
                    client.join()
                    if client.refused:
                        raise RuntimeError(f"feedback was refused: {client.refused[0]}")
                    sent[client.user] = client.sent
                    acknowledged.update(client.acknowledged)
        with ours(folder) as server:
            unknown += sum(not_known(server, acknowledged).values())
        stored = Counter(
            key(json.loads(line))
            for line in (folder / "serving/feedback.jsonl").read_text().splitlines()
        )
    lost = acknowledged - stored
    return Kills(kills, acknowledged.total(), lost.total(), unknown)


def not_known(server: Server, acknowledged: Counter[tuple[Any, ...]]) -> Counter[str]:
    """By user, how many of their items are recommended to them although they sent feedback."""
    client = Client(server.host, server.port)
    found: Counter[str] = Counter()
    for user in sorted({record[0] for record in acknowledged}):
        items = sorted({record[1] for record in acknowledged if record[0] == user})
        for start in range(0, len(items), AT_ONCE):
            only = [f"id:{item}" for item in items[start : start + AT_ONCE]]
            body = {"user": user, "only": only, "k": AT_ONCE}
            status, answer = client.send("POST", "/v1/recommend", body)
            found[user] += len(answer["items"]) if status == 200 else len(only)
    client.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--users", type=int, default=4, help="clients that send feedback")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = measure(options.workdir, options.kills, options.users, options.seed)
    print(
        f"{found.kills} kills, {found.acknowledged:,} events acknowledged, {found.lost} lost,"
        f" {found.unknown} unknown to the next answer"
    )
    return int(found.lost > 0 or found.unknown > 0)


if __name__ == "__main__":
    sys.exit(main())
