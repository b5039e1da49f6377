"""Large contents, many files, several processes, and how long recovery takes; alternatives interleaved.

python bench/large.py [FOLDER] [GIGABYTES]
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from surefoot_storage import Workspace, processes

MB = 1 << 20


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def turns(
    variants: dict[str, Callable[[], object]], rounds: int, between: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Median seconds of each; they take turns, so that the disk's moods hit all alike."""
    took: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            between()
            os.sync()
            took[name].append(timed(work))
    return {name: statistics.median(values) for name, values in took.items()}


def copy_and_sync(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)
    fd = os.open(target, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def streaming(base: Path, size_mb: int) -> None:
    """The source is outside the workspace; the target is new each time, for both."""
    source = base / "source"
    with open(source, "wb") as file:
        file.writelines(os.urandom(MB) for _ in range(size_mb))
    (base / "w").mkdir()
    with Workspace(base / "w", idle_s=3600) as workspace:

        def stream() -> None:
            tx = workspace.begin()
            with open(source, "rb", buffering=0) as file, workspace.create(tx, "big") as out:
                while chunk := file.read(MB):
                    out.write(chunk)
            workspace.commit(tx)

        def remove() -> None:
            workspace.checkpoint()
            for path in (base / "w/big", base / "copy"):
                path.unlink(missing_ok=True)

        variants = {"stream": stream, "cp + fsync": lambda: copy_and_sync(source, base / "copy")}
        found = turns(variants, 5, remove)
        remove()
    print(f"\n{size_mb} MiB")
    for name, seconds in found.items():
        print(f"  {name:<12} {seconds:6.2f} s  {size_mb / seconds:6.0f} MiB/s")
    print(f"  stream at {found['cp + fsync'] / found['stream']:.2f} x the speed of cp + fsync")
    source.unlink()


def many_files(base: Path) -> None:
    """Milliseconds for each file of one transaction, against temp + fsync + rename for each."""
    counts = (10, 100, 1000)
    print("\nfiles in one transaction: ms for each file")
    for count in counts:
        folder = base / f"many{count}"
        (folder / "safe").mkdir(parents=True)
        (folder / "w").mkdir()
        with Workspace(folder / "w", idle_s=3600) as workspace:
            generation = 0

            def ours(workspace: Workspace = workspace, count: int = count) -> None:
                nonlocal generation
                generation += 1
                tx = workspace.begin()
                for n in range(count):
                    tx.write_bytes(f"d{n % 10}/{n}", b"%d %d" % (generation, n) * 100)
                workspace.commit(tx)

            def safe(folder: Path = folder, count: int = count) -> None:
                for n in range(count):
                    with open(folder / "safe/tmp", "wb") as file:
                        file.write(b"%d" % n * 200)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(folder / "safe/tmp", folder / f"safe/{n}")

            ours()
            workspace.checkpoint()
            found = turns({"ours": ours, "safe": safe}, 3 if count == 1000 else 7)
        print(
            f"  {count:>5}: {found['ours'] / count * 1e3:5.2f}"
            f"   safe writes {found['safe'] / count * 1e3:5.2f}"
            f"   ours / safe {found['ours'] / found['safe']:.2f}"
        )


WORKER = """
import sys, threading, time
from surefoot_storage import Workspace
root, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
with Workspace(root, idle_s=0.5) as workspace:
    print("ready", flush=True); sys.stdin.readline()
    count, end = [0] * 16, time.monotonic() + seconds
    def work(k):
        while time.monotonic() < end:
            tx = workspace.begin()
            for f in "abc":
                tx.write_bytes(f"{name}/{k}/{f}", b"%d" % count[k] * 500)
            workspace.commit(tx)
            count[k] += 1
    threads = [threading.Thread(target=work, args=(k,)) for k in range(int(sys.argv[4]))]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(sum(count), flush=True)
"""


def processes_at_once(base: Path) -> None:
    """Transactions of three files per second, by all processes together; 4 threads in each."""
    rates: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(3):
        for count, found in rates.items():
            root = base / "shared"
            root.mkdir()
            started = [
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, root, f"p{n}", "4", "4"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for n in range(count)
            ]
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in started:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            found.append(sum(int(process.communicate()[0]) for process in started) / 4)
            shutil.rmtree(root)
    one, four = (statistics.median(rates[count]) for count in rates)
    print(f"\nprocesses: 1 makes {one:.0f} transactions per second, 4 make {four:.0f}: {four / one:.2f}")


def recovery(base: Path) -> None:
    """After a power cut with as many paths waiting as the limits allow: all are verified by hash."""
    root = base / "recovery"
    root.mkdir()
    code = (
        "import os, sys; from surefoot_storage import Workspace\n"
        "w = Workspace(sys.argv[1], idle_s=3600); w._background.note_commit = lambda **_: None\n"
        "for t in range(16):\n    tx = w.begin()\n    for n in range(256):\n"
        "        tx.write_bytes(f'd{t}/{n}', b'%d %d' % (t, n) * 300)\n    w.commit(tx)\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, root], check=False)
    for path in list(root.glob("d*/*"))[::2]:
        path.unlink()
    processes.boot_id = lambda: "another boot"
    seconds = timed(lambda: Workspace(root).close())
    print(f"\nrecovery of 4,096 paths, half of them lost: {seconds:.2f} s")


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    base = Path(tempfile.mkdtemp(prefix="surefoot-bench-", dir=folder))
    try:
        many_files(base)
        processes_at_once(base)
        recovery(base)
        streaming(base, int(float(sys.argv[2]) * 1024) if len(sys.argv) > 2 else 1024)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
