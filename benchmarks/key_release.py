"""How long does a key release take, beside what it can't avoid?

    python -m benchmarks.key_release [--rounds 5] [--each 40] [--entries 1000000]

A release is the whole protocol on loopback by the workload's own client code: a TLS connection, KBS request, challenge,
a quote by a real software TPM, attestation, one key with its log receipt, receipt checked and key opened. Each is the
first of a job of its own, with statements of its own, at a broker that is a process of its own, with a durable log on
the disk of ``--folder``. The node's agent is part of the client's process here: its socket and its tunnel are left out.

``release_vs_floor`` compares, in turns, one client's releases with the floor: one quote, one append of the same entry
with an fsync, and HTTPS requests of the same sizes, with the same libraries, to a process that only answers;
``release_vs_raw_floor`` with one whose round trips are bytes in TLS, without HTTP. ``log_share`` is the part of those
releases' time that the broker spent in its durable log, ``state_share`` in its tables. ``p99_over_p50`` is that of 8
clients at once. ``growth_1M`` compares, in turns, a broker whose log has ``--entries`` entries with one that has 1,000.
All clients are threads of one process, so beyond a few of them their own work counts, too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from cloister.attestation.tpm import QUOTED_PCRS
from cloister.crypto import random_bytes
from cloister.node.attester import TpmAttester
from cloister.workload.broker_client import BrokerClient

from . import result_line, say
from ._release_floor import Floor, Sizes, recording
from ._release_stage import (
    AGENT,
    PER_NODE,
    BrokerProcess,
    Client,
    Node,
    Spendable,
    Stage,
    broker_process,
    lengthen,
    prepare,
    spend,
)

NAME = "key_release"
BASELINE = "one quote, one synced append, and HTTPS round trips of a release's sizes without anything behind them"
SHORT = 1_000
ENTRY = 900  # bytes of a release's log entry, near enough
CROWDS = (8, 64)


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least ``share`` of all values don't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


class Purse:
    """Jobs to spend at one broker."""

    def __init__(self, jobs: list[Spendable]) -> None:
        self._jobs = jobs

    def take(self, count: int) -> list[Spendable]:
        taken, self._jobs = self._jobs[:count], self._jobs[count:]
        if len(taken) < count:
            raise ValueError("more releases than jobs were prepared")
        return taken


def one_client(
    stage: Stage,
    folder: Path,
    brokers: tuple[BrokerProcess, BrokerProcess],
    purses: tuple[Purse, Purse],
    opts: argparse.Namespace,
) -> dict[str, float]:
    """Floor, short log, long log, in turns."""
    short, long = brokers
    sizes = _sizes(stage, short, purses[0])
    spend(stage, purses[1].take(8), 1, long.port)  # warm, as the other side was
    seen: dict[str, list[float]] = {name: [] for name in ("ratio", "raw_ratio", "growth", "floor", "now", "long")}
    spent = dict.fromkeys(("log", "state", "challenge", "attest", "resource"), 0.0)
    for _ in range(opts.rounds):
        short.seconds()
        now, _wall = spend(stage, purses[0].take(opts.each), 1, short.port)
        told = short.seconds()
        spent = {name: seconds + told.get(name, 0.0) for name, seconds in spent.items()}
        floor = _floor(stage, folder, sizes, opts.each)
        later, _wall = spend(stage, purses[1].take(opts.each), 1, long.port)
        seen["ratio"].append(median(now) / median(floor.totals("https")))
        seen["raw_ratio"].append(median(now) / median(floor.totals("raw")))
        seen["growth"].append(median(later) / median(now))
        seen["floor"] += floor.totals("https")
        seen["now"] += now
        seen["long"] += later
    parts, count = floor.parts(), len(seen["now"])
    say(f"floor: {', '.join(f'{name} {seconds * 1000:.2f} ms' for name, seconds in parts.items())}")
    say(f"broker: {', '.join(f'{name} {s / count * 1000:.2f} ms' for name, s in spent.items())} a release")
    return {
        "release_vs_floor": median(seen["ratio"]),
        "release_vs_raw_floor": median(seen["raw_ratio"]),
        "growth_1M": median(seen["growth"]),
        "log_share": spent["log"] / sum(seen["now"]),
        "state_share": spent["state"] / sum(seen["now"]),
        "p50_ms": median(seen["now"]) * 1000,
        "p99_ms": percentile(seen["now"], 0.99) * 1000,
        "floor_p50_ms": median(seen["floor"]) * 1000,
        **{f"floor_{name}_ms": seconds * 1000 for name, seconds in parts.items()},
        "p50_1M_ms": median(seen["long"]) * 1000,
        "per_s_1": count / sum(seen["now"]),
    }


def _sizes(stage: Stage, broker: BrokerProcess, purse: Purse) -> Sizes:
    """Of one release's requests and answers; and the first releases of a process, which are slower, are behind it."""
    spend(stage, purse.take(8), 1, broker.port)
    with TpmAttester.software(stage.nodes[0], AGENT) as attester, recording(BrokerClient) as recorded:
        client = Client(Node(attester, broker.port))
        (job,) = purse.take(1)
        client.release(client.launch(job), job.statements)
        return recorded()


def _floor(stage: Stage, folder: Path, sizes: Sizes, count: int) -> Floor:
    """Measured ``count`` times, once it is warm."""
    with (
        TpmAttester.software(stage.nodes[0], AGENT) as attester,
        Floor.over(attester._tpm, folder, sizes, bytes(ENTRY)) as floor,
    ):
        for number in range(count + 8):
            if number == 8:
                floor.seen = {name: [] for name in floor.seen}
            floor.once(random_bytes(32), QUOTED_PCRS)
        return floor


def crowds(stage: Stage, broker: BrokerProcess, purse: Purse, each: int) -> dict[str, float]:
    """Many clients at once."""
    out: dict[str, float] = {}
    for clients in CROWDS:
        found, wall = spend(stage, purse.take(_crowd_jobs(clients, each)), clients, broker.port)
        out[f"p50_{clients}_ms"] = median(found) * 1000
        out[f"p99_{clients}_ms"] = percentile(found, 0.99) * 1000
        out[f"per_s_{clients}"] = len(found) / wall
        say(f"{clients} clients: p50 {median(found) * 1000:.1f} ms, {len(found) / wall:.0f} releases/s")
    out["p99_over_p50"] = out["p99_8_ms"] / out["p50_8_ms"]
    return out


def _crowd_jobs(clients: int, each: int) -> int:
    return clients * max(8, each * PER_NODE // clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=40, help="releases of one client a round")
    parser.add_argument("--entries", type=int, default=1_000_000, help="log entries of the long side")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the log's disk")
    opts = parser.parse_args()
    single = opts.rounds * opts.each + 16
    jobs = single + sum(_crowd_jobs(clients, opts.each) for clients in CROWDS)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with ExitStack() as stack:
        built = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-release-", dir=memory)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-release-", dir=opts.folder)))
        say("two parties sign contracts and jobs ...")
        stage = prepare(built, jobs, -(-max(CROWDS) // PER_NODE))
        lengthen(stage.template, SHORT)
        short = stack.enter_context(broker_process(stage.template, folder / "short"))
        say(f"a log of {opts.entries:,} entries is written ...")
        lengthen(stage.template, opts.entries)
        long = stack.enter_context(broker_process(stage.template, folder / "long"))
        os.sync()  # what was copied is on the disk before anything is timed
        purses = Purse(list(stage.jobs)), Purse(list(stage.jobs))
        metrics = one_client(stage, folder, (short, long), purses, opts)
        metrics |= crowds(stage, short, purses[0], opts.each)
    metrics["scaling_8_ratio"] = metrics["per_s_8"] / metrics["per_s_1"]
    print(result_line(NAME, metrics, baseline=BASELINE, n=opts.rounds))


if __name__ == "__main__":
    main()
