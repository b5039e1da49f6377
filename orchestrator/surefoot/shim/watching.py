"""One command: started, watched against its limits, stopped with everything it has started, written down."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import time
from typing import Any

from . import landlock, tree
from .logfile import Log

FORMAT = 1
TICK_S = 0.1
LOOK_S = 0.5  # how often the use of everybody is measured
LEFTOVER_S = 1.0  # for what the command has left running when it ends
KILL_S = 10.0  # SIGKILL does not wait longer than that for a process that the disk holds
FLUSH_S = 0.2
PADDING_BYTES = 4096
IDLE_CPU_S = 0.05  # of a second: who computes is not idle


class Watch:
    """Everything about it; `spec` is what `surefoot.launching` has put together."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        self._limits = spec["limits"]
        self._log = Log(self._limits["log_bytes"], spec["secrets"], spec["done"]["line"])
        self._started = self._said = self._looked = self._disk_looked = time.monotonic()
        self._started_at = time.time()
        self._selector = selectors.DefaultSelector()
        self._pid = 0
        self._status: int | None = None
        self._cause = "exited"
        self._error = ""
        self._peak_bytes = 0
        self._cpu_s = self._cpu_then = 0.0
        self._disk_pause_s = 2.0
        self._disk_then = 0
        self._result_at: float | None = None
        self._result_seen = 0
        self._memory = 0
        self._confined = "none"
        self._leftovers = self._survivors = 0
        self._exit = os.open("exit.json.new", os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(self._exit, b" " * PADDING_BYTES)  # so that a full disk cannot keep the end from being told
        os.fsync(self._exit)

    # --- the beginning ---

    def start(self) -> None:
        """The command waits until it is written down who it is; only then does it begin.

        Raises:
            OSError: it cannot be confined as was asked, or the disk does not take the record.
        """
        tree.become_subreaper()
        signal.signal(signal.SIGTERM, lambda _n, _f: self._stop("stopped"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        output = self._pipe()
        failed, failing = os.pipe()
        go, going = os.pipe()
        confinement, confined = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(going)
                os.close(confinement)
                self._become(go, confined, output)
            except BaseException as error:  # noqa: BLE001 - told through the pipe, which exec would close
                os.write(failing, f"{type(error).__name__}: {error}".encode())
            os._exit(127)
        for fd in (go, failing, confined, *output):
            os.close(fd)
        with open(confinement, encoding="utf-8") as file:
            self._confined = file.read() or "none"
        self._write_spawn()
        with contextlib.suppress(BrokenPipeError):
            os.write(going, b"go")
        os.close(going)
        with open(failed, encoding="utf-8", errors="replace") as file:
            self._error = file.read()

    def _pipe(self) -> tuple[int, int]:
        """Where the command's stdout and stderr go; stdout to a file of its own as well, if it is wanted."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._selector.register(reader, selectors.EVENT_READ, None)
        if not self._spec["keep_stdout"]:
            return writer, os.dup(writer)
        apart, stdout = os.pipe()
        os.set_blocking(apart, False)
        keep = os.open("stdout", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._selector.register(apart, selectors.EVENT_READ, keep)
        return stdout, writer

    def _become(self, go: int, confined: int, output: tuple[int, int]) -> None:
        """In the child: the command itself."""
        spec = self._spec
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.write(confined, self._confine().encode())
        os.close(confined)
        os.read(go, 2)
        os.chdir(spec["cwd"])
        os.dup2(os.open(spec["stdin"] or os.devnull, os.O_RDONLY), 0)
        os.dup2(output[0], 1)
        os.dup2(output[1], 2)
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - the command is the point

    def _confine(self) -> str:
        wanted = self._spec["confine"]
        if wanted["level"] == "none":
            return "none"
        try:
            if wanted["level"] == "strict":
                paths = list(wanted["writable"])
            else:
                paths = landlock.beside(wanted["protect"], wanted["writable"])
            version = landlock.restrict(paths)
        except OSError as error:
            if wanted["required"]:
                raise
            return f"none ({error})"
        return f"{wanted['level']} (landlock {version})"

    def _write_spawn(self) -> None:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        record = {
            "format": FORMAT, "nonce": self._spec["nonce"], "boot_id": boot,
            "shim": {"pid": os.getpid(), "start_time": tree.start_time(os.getpid())},
            "command": {"pid": self._pid, "start_time": tree.start_time(self._pid)},
            "argv": self._spec["argv"], "cwd": self._spec["cwd"], "confined": self._confined,
            "started_at": self._started_at,
        }  # fmt: skip
        fd = os.open("spawn.json.new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, json.dumps(record).encode())
        os.fsync(fd)
        os.close(fd)
        os.rename("spawn.json.new", "spawn.json")
        _sync_folder()

    # --- while it runs ---

    def run(self) -> None:
        """Until the command and everything it has started is gone; then that is written down."""
        while self._status is None:
            self._turn()
            self._check()
        self._read_rest()
        self._end_leftovers()
        self._read_rest()
        self._write_exit()

    def _turn(self) -> None:
        """A tick: what was said, who has ended."""
        said = False
        for key, _ in self._selector.select(TICK_S):
            said = self._read(key) or said
        now = time.monotonic()
        if said:
            self._said = now
        elif now - self._said > FLUSH_S:
            self._log.flush()
        self._status = tree.reap().get(self._pid, self._status)

    def _read(self, key: selectors.SelectorKey) -> bool:
        try:
            data = os.read(key.fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(key.fileobj)
            return False
        if key.data is not None:
            with contextlib.suppress(OSError):
                os.write(key.data, data)
        self._log.take(data)
        return True

    def _read_rest(self) -> None:
        for _ in range(1024):  # 64 MiB are in no pipe
            ready = self._selector.select(0)
            if [key for key, _ in ready if self._read(key)] == []:
                break
        self._log.flush()

    def _check(self) -> None:
        """Limits, signs that it is done, and whether somebody wants it to stop."""
        now = time.monotonic()
        limits, done = self._limits, self._spec["done"]
        if limits["wall_s"] is not None and now - self._started >= limits["wall_s"]:
            return self._stop("wall")
        if limits["output_bytes"] is not None and self._log.size > limits["output_bytes"]:
            return self._stop("output")
        if self._log.is_done:
            return self._stop("done_line")
        if now - self._looked < LOOK_S:
            return None
        busy = self._measure(now)
        if os.path.exists("stop.json"):
            return self._stop("stopped")
        if limits["memory_bytes"] is not None and self._memory > limits["memory_bytes"]:
            return self._stop("memory")
        if limits["cpu_s"] is not None and self._cpu_s > limits["cpu_s"]:
            return self._stop("cpu")
        if busy:
            self._said = now
        silent_s = now - self._said
        if limits["idle_s"] is not None and silent_s >= limits["idle_s"]:
            return self._stop("idle")
        if done["idle_s"] is not None and silent_s >= done["idle_s"]:
            return self._stop("done_idle")
        if done["result_s"] is not None and self._has_result(now, done["result_s"]):
            return self._stop("done_result")
        if limits["disk_bytes"] is not None and self._disk_is_full(now):
            return self._stop("disk")
        return None

    def _measure(self, now: float) -> bool:
        """Takes what everybody uses; True where somebody computes."""
        use = tree.use()
        self._memory = use.rss_bytes
        self._peak_bytes = max(self._peak_bytes, use.rss_bytes)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._cpu_s = use.cpu_s + ended.ru_utime + ended.ru_stime
        used = self._cpu_s - self._cpu_then
        self._cpu_then = self._cpu_s
        busy = used >= IDLE_CPU_S * (now - self._looked)
        self._looked = now
        beat = {
            "at": time.time(), "monotonic_s": now, "cpu_s": round(self._cpu_s, 2),
            "rss_bytes": use.rss_bytes, "processes": use.count, "output_bytes": self._log.size,
        }  # fmt: skip
        with contextlib.suppress(OSError):
            _write("beat.json", beat)
        return busy

    def _has_result(self, now: float, after_s: float) -> bool:
        path = os.path.join(self._spec["cwd"], self._spec["result"])
        if not os.path.exists(path):
            self._result_at = None
            return False
        changed = os.stat(path).st_mtime_ns
        if self._result_at is None or self._result_seen != changed:
            self._result_at, self._result_seen = now, changed
        return now - self._result_at >= after_s

    def _disk_is_full(self, now: float) -> bool:
        if now - self._disk_looked < self._disk_pause_s:
            return False
        size = _tree_bytes(self._spec["cwd"])
        took = time.monotonic() - now
        self._disk_pause_s, self._disk_looked = max(2.0, 20 * took), time.monotonic()
        return bool(size - self._spec["disk_before_bytes"] > self._limits["disk_bytes"])

    # --- its end ---

    def _stop(self, cause: str) -> None:
        """The whole tree: asked first, and made to after `grace_s`."""
        if self._has_ended():
            return
        self._cause = cause
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGCONT)
        tree.send(signal.SIGTERM)
        until = time.monotonic() + self._limits["grace_s"]
        while not self._has_ended() and time.monotonic() < until:
            self._turn()
        until = time.monotonic() + KILL_S
        while not self._has_ended() and time.monotonic() < until:
            tree.stop_all()
            self._turn()
        if not self._has_ended():
            self._status, self._error = signal.SIGKILL, "SIGKILL was sent, and it did not end"

    def _has_ended(self) -> bool:
        return self._status is not None

    def _end_leftovers(self) -> None:
        """What the command has left running belongs to nobody, and would go on writing."""
        tree.reap()
        self._leftovers = tree.send(signal.SIGTERM)
        until = time.monotonic() + LEFTOVER_S
        while tree.use().count and time.monotonic() < until:
            time.sleep(TICK_S / 5)
            tree.reap()
        until = time.monotonic() + KILL_S
        while tree.use().count and time.monotonic() < until:
            tree.stop_all()
            time.sleep(TICK_S / 5)
            tree.reap()
        self._survivors = tree.use().count

    def _write_exit(self) -> None:
        assert self._status is not None
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = os.waitstatus_to_exitcode(self._status)
        record = {
            "format": FORMAT, "nonce": self._spec["nonce"], "cause": self._cause,
            "code": code if code >= 0 else None, "signal": -code if code < 0 else None,
            "error": self._error, "started_at": self._started_at, "ended_at": time.time(),
            "wall_s": round(time.monotonic() - self._started, 3),
            "cpu_s": round(ended.ru_utime + ended.ru_stime, 3),
            "peak_rss_bytes": max(self._peak_bytes, ended.ru_maxrss * 1024),
            "output_bytes": self._log.size, "leftovers": self._leftovers, "survivors": self._survivors,
            "confined": self._confined,
        }  # fmt: skip
        data = json.dumps(record).encode() + b"\n"
        os.pwrite(self._exit, data, 0)
        os.ftruncate(self._exit, len(data))
        os.fsync(self._exit)
        os.rename("exit.json.new", "exit.json")
        _sync_folder()


def _write(name: str, value: dict[str, Any]) -> None:
    with open(f"{name}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(f"{name}.new", name)


def _sync_folder() -> None:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tree_bytes(path: str) -> int:
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return size
