"""Finds the collectives in the text of a compiled program: kind, shape, runs, bytes sent."""

from __future__ import annotations

import math
import re
from typing import Any

WIDTH = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
}
COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(?P<start>-start)?\("
)
CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """name -> lines, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """The number of iterations of a while loop.

    It is given by XLA or, without that, the constant with which the condition compares.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = computations[condition[1]] if condition else []
    constants = [c for x in lines for c in re.findall(r"constant\((\d+)\)", x)]
    if len(constants) != 1:
        raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
    return int(constants[0])


def _shapes(text: str) -> list[tuple[str, int]]:
    """(shape, bytes) of every array in an instruction's type."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", text)
    return [
        (f"{t}[{d}]", WIDTH.get(t, 4) * math.prod(int(n) for n in d.split(",") if n))
        for t, d in found
    ]


def _group(line: str, devices: int) -> int:
    """Devices in one group of a collective.

    They are written as lists, as rows of all devices, or as axes of a mesh, an axis perhaps cut
    into parts: ``mesh['a'=2,'b'=4] {'b'}`` has groups of 4, ``{'b':(1)2}`` groups of 2.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"('[^']*')=(\d+)", mesh[1]))
        parts = re.findall(r"('[^']*')(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else devices


def collectives(text: str) -> list[dict[str, Any]]:
    """All collectives of the program among two or more devices.

    times: how often it runs. bytes: sent by each device, in a ring.
    """
    computations, entry = _computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    found: list[dict[str, Any]] = []

    def visit(name: str, times: int) -> None:
        for line in computations[name]:
            repeated = (
                times * _trips(line, computations) if re.search(r"\bwhile\(", line) else times
            )
            called = CALLED.findall(line)
            for names in BRANCHES.findall(line):
                called += [part.strip().lstrip("%") for part in names.split(",")]
            match = COLLECTIVE.search(line)
            if match is None:
                for other in called:
                    visit(other, repeated)
                continue
            shapes = _shapes(match["shape"])
            group = _group(line, devices)
            if match["start"] and match["kind"] != "all-reduce":  # (operands, results)
                shapes = shapes[len(shapes) // 2 :]
            if group == 1:
                continue
            size = sum(bytes_ for _, bytes_ in shapes)
            part = (group - 1) / group
            others = {"all-reduce": 2 * part, "reduce-scatter": group - 1, "collective-permute": 1}
            sent = others.get(match["kind"], part)
            op = re.search(r'op_name="([^"]*)"', line)
            found.append(
                {
                    "kind": match["kind"],
                    "shape": " ".join(shape for shape, _ in shapes),
                    "devices": group,
                    "times": times,
                    "bytes": times * size * sent,
                    "op": op[1] if op else "",
                }
            )

    visit(entry, 1)
    return found
