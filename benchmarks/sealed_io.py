"""Sealed files beside the limit of what they could cost, and beside plain files. All in one run, on this machine.

    python -m benchmarks.sealed_io [--size 1024] [--large 4096] [--rounds 7] [--folder FOLDER]     sizes in MiB

What the keys mean (``_2t``: two threads on both sides, else one; each ratio is the median over alternating rounds):

- ``read_vs_limit``: our streaming read from a folder of our own (``OwnFolder``: mapped, each tag checked) over bare
  ``decrypt_into`` on the same file, newly mapped. ``read_vs_touched_map``: the limit's pages are mapped beforehand.
- ``read_untrusted_vs_limit``: the same from a folder that a hostile host may change meanwhile, the default for a
  path. Each block is copied into private memory and fingerprinted, so this does more than its limit.
- ``read_with_roots_vs_limit``: from an untrusted folder, then ``check_roots`` and ``require_complete`` (each block
  is read again for its SHA-256), over ``decrypt_into`` and SHA-256 of each block of a newly mapped file.
- ``read_vs_tink``: the first, over Tink's own Python library on the same file, read as in its guide (``read()``);
  ``read_vs_tink_in_pieces``: read by the megabyte, which is the best that it can do. Tink always has one thread.
- ``write_vs_limit``: ``seal_object`` from memory (encrypts, hashes each block on a thread of its own, signs) over
  bare ``encrypt_into`` with plain writes and the same syncs. On a slow disk it says that we don't slow that down.
- ``random_read_ratio``: time of 1 MiB reads at random positions over ``pread`` of a plain file, own folder. Each
  touches two segments, which two threads decrypt; ``_1t``: one thread. ``_untrusted``: with the private copy.
  ``random_read_4k_ratio``: 4 KiB, which costs a whole segment.
- ``parquet_overhead``: time of a column scan through the file system (own folder) over the plain file, with row groups
  as large as pyarrow makes them; ``_untrusted``: from an untrusted folder, as in a workload; ``_small_groups``: of
  100,000 rows, where more of each segment belongs to columns that weren't asked for.
  ``parquet_blocks_share``: the part of the file's blocks that was read, ``parquet_asked_share``: that was asked for.
- ``model_load_overhead``: time to load a safetensors model (untrusted folder, with the search for NaN) over plain
  safetensors with each tensor copied.
- ``rss_growth_mb``: peak memory of a process that seals, reads and checks ``--large``, less the same for 100 MiB.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from . import result_line, say
from ._sealed_formats import Counting, Random, Scan, load_plain, load_sealed, peak_rss_mb, write_model, write_table
from ._sealed_sides import MIB, Object, Work, in_threads, random_plaintext, write_limit

NAME = "sealed_io"
BASELINE = (
    "bare decrypt_into and encrypt_into of the same library, Tink's Python library, plain files in the page cache"
)


class Bench:
    """Compares by alternating: the load of a shared machine changes slowly, and both of a pair meet the same."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.metrics: dict[str, float] = {}

    def pair(
        self, ours: Work, theirs: Work, *, rounds: int | None = None, after: Work | None = None
    ) -> tuple[float, float, float]:
        """(median of theirs over ours, seconds of ours, seconds of theirs). One unmeasured round comes first."""
        times = [(_seconds(ours, after), _seconds(theirs, after)) for _ in range(1 + (rounds or self.rounds))][1:]
        return median(t / o for o, t in times), median(o for o, _ in times), median(t for _, t in times)

    def speed(
        self, key: str, size: int, ours: Work, theirs: Work, limit: str | None = None, after: Work | None = None
    ) -> None:
        ratio, mine, other = self.pair(ours, theirs, after=after)
        self.metrics[key] = ratio
        self.metrics[key.replace("_vs_limit", "") + "_gb_s"] = size / mine / 1e9
        if limit is not None:
            self.metrics[limit + "_gb_s"] = size / other / 1e9
        say(f"  {key} {ratio:.3f}   ours {size / mine / 1e9:.2f} GB/s, theirs {size / other / 1e9:.2f} GB/s")

    def overhead(self, key: str, ours: Work, theirs: Work, per: int = 1) -> None:
        ratio, mine, other = self.pair(ours, theirs)
        self.metrics[key] = 1 / ratio
        self.metrics[f"{key.removesuffix('_ratio')}_us"] = mine / per * 1e6
        say(f"  {key} {1 / ratio:.3f}   ours {mine / per * 1e6:.0f} us, plain {other / per * 1e6:.0f} us")


def _seconds(work: Work, after: Work | None) -> float:
    start = time.perf_counter()
    work()
    taken = time.perf_counter() - start
    if after is not None:
        after()
    return taken


def reading(bench: Bench, folder: Path, size: int) -> None:
    made = Object.seal(folder / "stream", [("data", random_plaintext(size))])
    for threads, mark in ((1, ""), (2, "_2t")):
        limit = made.bare_decrypt(threads)
        bench.speed(f"read_vs_limit{mark}", size, lambda t=threads: made.stream(own=True, threads=t), limit,
                    f"read_limit{mark}")  # fmt: skip
        bench.speed(f"read_untrusted_vs_limit{mark}", size, lambda t=threads: made.stream(own=False, threads=t), limit)
        bench.speed(
            f"read_with_roots_vs_limit{mark}",
            size,
            lambda t=threads: made.stream(own=False, threads=t, roots=True),
            made.bare_decrypt(threads, sha256=True),
            f"read_with_roots_limit{mark}",
        )
    touched = made.mapped(touched=True)
    ratio, _, _ = bench.pair(lambda: made.stream(own=True, threads=1), made.bare_decrypt(1, touched=touched))
    bench.metrics["read_vs_touched_map"] = ratio
    for key, piece, threads, mark in (
        ("tink", -1, 1, ""), ("tink", -1, 2, "_2t"), ("tink_in_pieces", MIB, 1, ""), ("tink_in_pieces", MIB, 2, "_2t")
    ):  # fmt: skip
        ours = partial(made.stream, own=True, threads=threads)
        ratio, _, other = bench.pair(ours, made.tink_read(piece), rounds=5)
        bench.metrics |= {f"read_vs_{key}{mark}": ratio, f"read_{key}_gb_s": size / other / 1e9}
        say(f"  read_vs_{key}{mark} {ratio:.1f}   Tink {size / other / 1e9:.2f} GB/s")
    positions(bench, made)


def positions(bench: Bench, made: Object) -> None:
    plain = made.ciphertext()  # any file will do, and this one is in the page cache
    for own, mark in ((True, ""), (False, "_untrusted")):
        for threads, more in ((2, ""), (1, "_1t")):
            with made.open(own=own, threads=threads) as sealed:
                both = Random(sealed, plain, MIB, 200)
                bench.overhead(f"random_read{mark}{more}_ratio", both.sealed, both.plain, per=200)
    with made.open(own=True, threads=2) as sealed:
        both = Random(sealed, plain, 4096, 200)
        bench.overhead("random_read_4k_ratio", both.sealed, both.plain, per=200)


def writing(bench: Bench, folder: Path, size: int) -> None:
    sources = [random_plaintext(size // 2) for _ in range(2)]
    places = [folder / "one", folder / "two"]

    def ours(threads: int) -> None:
        pairs = list(zip(places, sources, strict=True))[:threads]
        in_threads([partial(_seal, place, source) for place, source in pairs])

    def limit(threads: int) -> None:
        pairs = list(zip(places, sources, strict=True))[:threads]
        in_threads([partial(write_limit, place, source.getbuffer()) for place, source in pairs])

    def clean() -> None:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)  # one thread fills one place only

    for threads, mark in ((1, ""), (2, "_2t")):
        work = partial(ours, threads), partial(limit, threads)
        bench.speed(f"write_vs_limit{mark}", size // 2 * threads, *work, f"write_limit{mark}", clean)


def _seal(folder: Path, source: io.BytesIO) -> None:
    source.seek(0)
    Object.seal(folder, [("data", source)])


def tables(bench: Bench, folder: Path, rows: int) -> None:
    for mark, group in (("_small_groups", 100_000), ("", None)):
        plain = folder / f"plain{mark}.parquet"
        write_table(plain, rows, group)
        made = Object.seal(folder / f"table{mark}", [("plain.parquet", plain)])
        for own, trust in ((True, ""), (False, "_untrusted")):
            with made.open(own=own, threads=2) as sealed:
                scan = Scan(plain, sealed)
                if not scan.sealed().equals(scan.plain()):
                    raise RuntimeError("the sealed table is another one")
                bench.overhead(f"parquet_overhead{mark}{trust}", scan.sealed, scan.plain)
    counting = Counting(made.folder)
    with made.open_source(counting) as sealed:
        scan = Scan(plain, sealed)
        scan.sealed()
        blocks = -(-made.ciphertext().stat().st_size // MIB)
        bench.metrics |= {
            "parquet_blocks_share": len(counting.blocks) / blocks,
            "parquet_asked_share": scan.asked_share(),
        }


def models(bench: Bench, folder: Path, size: int) -> None:
    plain = folder / "model.safetensors"
    write_model(plain, size)
    made = Object.seal(folder / "model", [("model.safetensors", plain)])
    with made.open(own=False, threads=2) as sealed:
        bench.overhead("model_load_overhead", lambda: load_sealed(sealed), lambda: load_plain(plain))


def memory(bench: Bench, folder: Path, large: int) -> None:
    small, most = (peak_rss_mb(folder / f"memory{size}", size) for size in (100 * MIB, large))
    bench.metrics |= {"rss_growth_mb": most - small, "rss_peak_mb": most, "rss_large_object_mib": large / MIB}
    say(f"  rss_growth_mb {most - small:.1f}   peak {most:.0f} MB")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"benchmarks.{NAME}", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=1024, help="MiB that are streamed")
    parser.add_argument("--large", type=int, default=4096, help="MiB of the large object of the memory test")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the Parquet table")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; by default a temporary one")
    parser.add_argument("--only", action="append", choices=["reading", "writing", "tables", "models", "memory"])
    args = parser.parse_args(argv)
    bench = Bench(args.rounds)
    parts: dict[str, Callable[[Path], None]] = {
        "reading": lambda folder: reading(bench, folder, args.size * MIB),
        "writing": lambda folder: writing(bench, folder, args.size * MIB),
        "tables": lambda folder: tables(bench, folder, args.rows),
        "models": lambda folder: models(bench, folder, args.size * MIB // 2),
        "memory": lambda folder: memory(bench, folder, args.large * MIB),
    }
    for name in args.only or parts:
        with tempfile.TemporaryDirectory(prefix="cloister-bench-", dir=args.folder) as folder:
            if shutil.disk_usage(folder).free < 2 * max(args.size, args.large) * MIB:
                raise SystemExit("the disk is too full for this; name another --folder, or smaller sizes")
            say(name)
            parts[name](Path(folder))
    if args.only:
        print(bench.metrics)
    else:
        print(result_line(NAME, bench.metrics, baseline=BASELINE, n=args.rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
