"""Large contents: streamed in and out, flat in memory, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys

import anyio
import pytest
from faulty import Hooked, Once, fails

from surefoot import Engine, Transaction, Workflow
from surefoot_storage import (
    Conflict,
    IncompatibleOperations,
    StageFailed,
    TransactionClosed,
    Workspace,
)

MB = 1 << 20
BLOCK = os.urandom(MB)


def staged(root):
    return os.listdir(root / ".surefoot/stage") + os.listdir(root / ".surefoot/keep")


@pytest.mark.parametrize("recipe", ["journal", "flush", "portable", "memory"])
def test_in_and_out_in_pieces(root, recipe):
    (root / "big").write_bytes(b"old" * MB)
    with Workspace(root, recipe=recipe, idle_s=3600) as workspace:
        tx = workspace.begin()
        with workspace.open(tx, "big") as source, workspace.create(tx, "made/copy", mode=0o600) as out:
            while chunk := source.read(100_001):
                out.write(chunk)
        with workspace.create(tx, "big") as out:
            for _ in range(5):
                out.write(BLOCK)
        with pytest.raises(IncompatibleOperations, match="a stream of this transaction"):
            tx.read_bytes("big")
        assert (root / "big").stat().st_size == 3 * MB
        assert workspace.commit(tx).applied
        assert (root / "big").read_bytes() == BLOCK * 5
        assert (root / "made/copy").read_bytes() == b"old" * MB
        assert (root / "made/copy").stat().st_mode & 0o777 == 0o600
        (old,) = workspace.query("SELECT old_digest FROM file_op WHERE path = ?", (b"big",))[0]
        assert workspace.read_blob(old) == b"old" * MB
        workspace.checkpoint()
        assert staged(root) == []


def test_a_small_stream_and_an_empty_one(root):
    with Workspace(root) as workspace:
        tx = workspace.begin()
        with workspace.create(tx, "small") as out:
            out.write(b"x")
        with workspace.create(tx, "empty"):
            pass
        workspace.commit(tx)
        assert ((root / "small").read_bytes(), (root / "empty").read_bytes()) == (b"x", b"")


def test_a_commit_refuses_while_a_stream_is_open(root):
    with Workspace(root) as workspace:
        tx = workspace.begin()
        out = workspace.create(tx, "big")
        out.write(BLOCK)
        with pytest.raises(IncompatibleOperations, match="still open for writing"):
            workspace.commit(tx)
        out.close()
        assert workspace.commit(tx).applied


def test_a_block_that_is_left_by_an_exception_gives_the_stream_up(root):
    with Workspace(root) as workspace:
        tx = workspace.begin()
        with pytest.raises(ZeroDivisionError), workspace.create(tx, "big") as out:
            out.write(BLOCK * 3)
            _ = 1 / 0
        assert not tx.exists("big")
        assert staged(root) == []
        tx.write_bytes("other", b"x")
        workspace.commit(tx)


def test_a_fenced_transaction_takes_nothing_more_and_leaves_nothing(root):
    with Workspace(root) as workspace:
        tx = workspace.begin()
        with workspace.create(tx, "done") as finished:
            finished.write(BLOCK)
        out = workspace.create(tx, "big")
        out.write(BLOCK * 2)
        assert tx.fence()
        with pytest.raises((TransactionClosed, ValueError)):
            out.write(BLOCK * 2)
        assert staged(root) == []


def test_a_full_disk_and_a_conflict_leave_nothing(root):
    fs = Hooked()
    (root / "a").write_bytes(b"x")
    with Workspace(root, fs=fs) as workspace:
        tx = workspace.begin()
        with pytest.raises(StageFailed, match="ENOSPC"), workspace.create(tx, "big") as out:
            fs.hook = Once("write", fails(28))
            out.write(BLOCK * 3)
        fs.hook = lambda _n, _a: None
        assert staged(root) == []
        tx = workspace.begin()
        tx.read_bytes("a")
        with workspace.create(tx, "big") as out:
            out.write(BLOCK)
        (root / "a").write_bytes(b"changed")
        with pytest.raises(Conflict):
            workspace.commit(tx)
        assert staged(root) == []


def test_a_large_file_that_changes_while_it_is_read_is_a_conflict(root):
    (root / "big").write_bytes(BLOCK * 3)
    with Workspace(root) as workspace:
        tx = workspace.begin()
        with pytest.raises(Conflict, match="changed it meanwhile"), workspace.open(tx, "big") as source:
            source.read(10)
            with open(root / "big", "r+b") as file:
                file.seek(2 * MB)
                file.write(b"changed")
            while source.read(MB):
                pass
        tx = workspace.begin()
        tx.load("big")
        (root / "big").write_bytes(BLOCK * 2)
        with pytest.raises(Conflict):
            tx.read_bytes("big")


FLAT = """
import os, resource, sys
from surefoot_storage import Workspace
root, size = sys.argv[1], int(sys.argv[2])
block = os.urandom(1 << 20)
with Workspace(root) as workspace:
    def step():
        tx = workspace.begin()
        with workspace.create(tx, "big") as out:
            for _ in range(size):
                out.write(block)
        workspace.commit(tx)
    size, whole = 8, size
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = whole
    step()  # replaces, keeps the old version, and reads it back
    tx = workspace.begin()
    with workspace.open(tx, "big") as source:
        assert sum(len(c) for c in iter(lambda: source.read(1 << 20), b"")) == size << 20
    tx.rmtree("x") if tx.exists("x") else tx.delete("big")
    workspace.commit(tx)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_flat(root):
    done = subprocess.run([sys.executable, "-c", FLAT, root, "200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * 1024  # KiB; the content is 200 MiB


def test_recovery_of_large_contents_stays_flat(root):
    code = FLAT.split("    step()\n", maxsplit=1)[0] + "    step()\n    os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", code, root, "100"]).returncode == 9
    (root / "big").unlink()
    (root / ".surefoot/applied").unlink()
    opened = (
        "import resource, sys; from surefoot_storage import Workspace, processes\n"
        "processes.boot_id = lambda: 'another boot'\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "w = Workspace(sys.argv[1]); assert w.recovered.completed == ('big',); w.close()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", opened, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 * 1024
    assert (root / "big").stat().st_size == 8 * MB


def test_a_program_that_ends_with_an_open_stream_ends(root):
    code = (
        "import sys; from surefoot_storage import Workspace; w = Workspace(sys.argv[1]); tx = w.begin()\n"
        "out = w.create(tx, 'big')\nfor _ in range(20): out.write(b'x' * (1 << 20))"
    )
    assert subprocess.run([sys.executable, "-c", code, root], timeout=30).returncode == 0
    with Workspace(root):
        assert not (root / "big").exists()
    assert staged(root) == []


def test_many_large_files_in_one_transaction(root):
    with Workspace(root, idle_s=3600) as workspace:
        tx = workspace.begin()
        for n in range(40):
            with workspace.create(tx, f"data/{n % 4}/{n}.bin") as out:
                out.write(BLOCK + b"%d" % n)
        workspace.commit(tx)
        for n in range(40):
            found = (root / f"data/{n % 4}/{n}.bin").read_bytes()
            assert hashlib.sha256(found).digest() == hashlib.sha256(BLOCK + b"%d" % n).digest()
        workspace.checkpoint()
        assert staged(root) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64


# --- in steps ---


async def test_a_step_streams_through_async_handles(root, anyio_backend):
    flow = Workflow("f", directory="r")

    @flow.step
    async def big(tx: Transaction, _given):
        async with tx.create("big.bin") as out:
            if anyio_backend == "asyncio":
                assert "aiofiles" in type(out).__module__
            for _ in range(3):
                await out.write(BLOCK)

    @flow.step
    async def copy(tx: Transaction, _given):
        async with tx.open("big.bin") as source, tx.create("copy.bin") as out:
            while chunk := await source.read(300_000):
                await out.write(chunk)

    @flow.step
    def third(tx: Transaction, _given):
        with tx.open("copy.bin") as source, tx.create("third.bin") as out:
            out.write(source.read())

    async with Engine(root, [flow]) as engine:
        (await engine.run(flow, run_id="r")).or_raise()
    for name in ("big.bin", "copy.bin", "third.bin"):
        assert (root / "r" / name).read_bytes() == BLOCK * 3
    assert staged(root) == []


async def test_a_step_that_times_out_while_streaming_changes_nothing(root, anyio_backend):
    flow = Workflow("f", directory="r")

    @flow.step(timeout_s=0.2)
    async def endless(tx: Transaction, _given):
        async with tx.create("big.bin") as out:
            while True:
                await out.write(BLOCK)
                await anyio.sleep(0.005)

    async with Engine(root, [flow]) as engine:
        result = await engine.run(flow, run_id="r")
        assert result.failure is not None
        assert result.failure.error == "StepTimedOut"
        assert not (root / "r/big.bin").exists()
        with anyio.fail_after(5):
            while any(not name.count(".json") for name in staged(root)) and staged(root):
                engine._the_open.workspace.checkpoint()
                await anyio.sleep(0.01)
