"""Spare files: displaced versions that are written again instead of being freed.

On some disks freeing a file costs more than everything else in a commit, and so does making a new one
while the filesystem steps over those just freed. A displaced file is therefore kept, once it is not
needed any more, and becomes the staged file of a later version, under these rules:

1. Only ever of the same path (directory and name). Whoever can still reach the file, by a bind mount, a
   file handle or an `open` that has been under way since before the swap, sees a later version of what it
   meant to see, never another file.
2. Only after a checkpoint: its successor is durable in its place, and so is its name as a spare file, by
   which recovery knows that it may be half written and removes it unseen. Not before `AGE_S` have passed.
3. Only on ext4 and xfs, where a lease is refused as long as anybody else has the file open or mapped.
4. Only a plain file of ours: one name, the owner, mode and attributes that are wanted, no more blocks
   than are needed, unchanged since it was put by.
5. The old pages are detached before the new ones are written, so that pipes keep what they hold.

Any doubt, and any error: a new file is used. Off unless freeing is measured to be slow. What is left: a
holder of such a bind mount or handle may see a version that is not committed yet, and a watch on the
file is told of changes rather than of its removal.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from .areas import Area
from .fsops import FsOps, is_regular
from .layout import SPARE_SUFFIX
from .paths import leaf_of, parent_of
from .states import File, Op, Stamp

AGE_S = 2.0
SLOW_FREE_S = 50e-6  # an unlink that takes longer, on the average, makes spare files worth their while
COUNT_MAX = 4096
COUNT_MAX_OF_A_PATH = 64
SIZE_BYTES_MAX = 64 << 10
_SAMPLES_MIN = 8
_WEIGHT = 1 / 8  # of the newest sample in the moving average
_BLOCK = 4096

Choice: TypeAlias = Literal["auto", "never", "always"]
Rescue: TypeAlias = Callable[[int, str, Area, str], None]  # (sequence, path, stage, name in it)
Place: TypeAlias = tuple[int, int, str]  # device and inode of the directory, name in it


@dataclass(frozen=True, slots=True, eq=False)
class _Spare:
    area: Area
    place: Place
    seq: int  # what displaced it
    path: str
    name: str
    stamp: Stamp
    room_bytes: int
    ready_at: float


class _Pool:
    """Bounded, by path and as a whole: the oldest go first, be it those of paths that nobody writes now."""

    def __init__(self) -> None:
        self._all: dict[_Spare, None] = {}  # in the order in which they came
        self._by_place: dict[Place, list[_Spare]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def has_room(self, place: Place) -> bool:
        """Whether one more for this path is of any use."""
        return len(self._by_place.get(place, ())) < COUNT_MAX_OF_A_PATH

    def add(self, spare: _Spare) -> None:
        """One more."""
        self._all[spare] = None
        self._by_place.setdefault(spare.place, []).append(spare)

    def take(self, fits: Callable[[_Spare], bool], place: Place) -> _Spare | None:
        """The first one of a path that fits."""
        found = next((spare for spare in self._by_place.get(place, ()) if fits(spare)), None)
        if found is not None:
            self._remove(found)
        return found

    def surplus(self, keep: int) -> list[_Spare]:
        """Takes out the oldest, until only `keep` are left."""
        oldest = list(self._all)[: max(0, len(self._all) - keep)]
        for spare in oldest:
            self._remove(spare)
        return oldest

    def _remove(self, spare: _Spare) -> None:
        del self._all[spare]
        self._by_place[spare.place].remove(spare)
        if not self._by_place[spare.place]:
            del self._by_place[spare.place]


class Spares:
    """Those of one open workspace. The checkpoint puts them by, staging takes them."""

    def __init__(
        self,
        fs: FsOps,
        root: int,
        *,
        worker: str,
        choice: Choice,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fs = fs
        self._root = root
        self.worker = worker
        self._choice = choice
        self.clock = clock
        self._lock = threading.Lock()
        self._pool = _Pool()
        self._settled_upto = 0  # what later commits displaced is not noted yet
        self._unfit: list[tuple[_Spare, bool]] = []  # and whether it still is as it was put by
        self._groups: dict[int, int] = {}  # by stage: whose group new files get there
        self._freed = 0
        self._free_s = 0.0

    # --- putting by: in the background, after a checkpoint ---

    def free(self, area: Area, name: str) -> None:
        """Removes a file of the stage, and takes notice of how long that takes."""
        started = self.clock()
        self._fs.unlink(area.stage, name)
        took = self.clock() - started
        self._free_s += (took - self._free_s) * (_WEIGHT if self._freed else 1)
        self._freed += 1

    @property
    def wanted(self) -> bool:
        """Whether freeing is slow here."""
        slow = self._freed >= _SAMPLES_MIN and self._free_s > SLOW_FREE_S
        return self._choice == "always" or (self._choice == "auto" and slow)

    def place_of(self, directory: int | None, newest: Op) -> Place | None:
        """Where a path's spares belong; None where it is not our last version that lies there.

        `newest` is the last durable change of the path, `directory` the one that holds it now.
        """
        if directory is None or not isinstance(newest.new, File):
            return None
        leaf = leaf_of(newest.path)
        now = self._fs.lstat(directory, leaf)
        if now is None or now.st_ino != newest.stage_ino:
            return None
        above = self._fs.fstat(directory)
        return above.st_dev, above.st_ino, leaf

    def put_by(self, seq: int, op: Op, area: Area, name: str, place: Place) -> bool:
        """Keeps a displaced version, not yet for use; False where it has to be freed."""
        if not self._may_be_spare(area, name, op):
            return False
        found = self._fs.lstat(area.stage, name)
        if found is None or not self._is_plain(found, op) or not self._pool.has_room(place):
            return False
        new_name = f"{name}{SPARE_SUFFIX}"
        self._fs.rename_new(area.stage, name, area.stage, new_name)
        renamed = self._fs.lstat(area.stage, new_name)
        if renamed is not None:
            stamp = replace(Stamp.of(found), ctime_ns=renamed.st_ctime_ns)
            room, ready_at = found.st_blocks * 512, self.clock() + AGE_S
            with self._lock:
                self._pool.add(_Spare(area, place, seq, op.path, new_name, stamp, room, ready_at))
        return True

    def _may_be_spare(self, area: Area, name: str, op: Op) -> bool:
        return (
            area.recipe.name == "journal"
            and area.recipe.fine_stamps
            and name == op.stage
            and name.startswith(f"{self.worker}.")
            and isinstance(op.old, File)
            and isinstance(op.new, File)
        )

    def _is_plain(self, found: os.stat_result, op: Op) -> bool:
        return (
            is_regular(found)
            and found.st_nlink == 1
            and 0 < found.st_blocks * 512 <= SIZE_BYTES_MAX
            and op.old_stamp is not None
            and op.old_stamp.same_content(Stamp.of(found))
        )

    def settle(self, upto: int, rescue: Rescue) -> None:
        """The names of spare files are durable up to there: what was put by may be used."""
        with self._lock:
            self._settled_upto = upto
            self._unfit += [(spare, True) for spare in self._pool.surplus(COUNT_MAX)]
        self._remove_unfit(rescue)

    def stop(self) -> None:
        """None from now on."""
        self._choice = "never"

    def _remove_unfit(self, rescue: Rescue) -> None:
        """A writer that still had one open may have gone on: its bytes are kept."""
        with self._lock:
            unfit, self._unfit = self._unfit, []
        for spare, untouched in unfit:
            found = self._fs.lstat(spare.area.stage, spare.name)
            if found is not None and untouched and Stamp.of(found) != spare.stamp:
                rescue(spare.seq, spare.path, spare.area, spare.name)
            else:
                self.free(spare.area, spare.name)

    # --- taking: on the way of a commit ---

    def filled(self, area: Area, op: Op, data: bytes) -> int | None:
        """An open staged file of this change, made from a spare one; None where a new one is needed."""
        spare = self._take(op, len(data)) if len(self._pool) and self._choice != "never" else None
        if spare is None:
            return None
        try:
            fd = self._fs.open_again(area.stage, spare.name)
        except OSError:  # somebody opens it at this moment, or it has gone
            self._drop(spare, untouched=True)
            return None
        untouched = True
        try:
            if self._is_free(fd, spare, op):
                untouched = False
                if self._fill(fd, spare, data):
                    self._fs.rename_new(area.stage, spare.name, area.stage, op.stage)
                    return fd
        except OSError as error:  # a new file will tell, where it is the disk
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                self.stop()
        except BaseException:
            self._fs.close(fd)
            raise
        self._fs.close(fd)
        self._drop(spare, untouched=untouched)
        return None

    def _take(self, op: Op, size: int) -> _Spare | None:
        above = self._fs.lstat(self._root, parent_of(op.path) or ".")
        if above is None:
            return None
        place, room = (above.st_dev, above.st_ino, leaf_of(op.path)), -(-size // _BLOCK) * _BLOCK

        def fits(spare: _Spare) -> bool:
            settled = spare.seq <= self._settled_upto and spare.ready_at <= self.clock()
            return settled and spare.room_bytes <= room  # freeing blocks is slow, too

        with self._lock:
            return self._pool.take(fits, place)

    def _is_free(self, fd: int, spare: _Spare, op: Op) -> bool:
        """Whether nobody else has it, and it is what it was."""
        if not self._fs.take_lease(fd):
            return False
        found = self._fs.fstat(fd)
        return (
            Stamp.of(found) == spare.stamp
            and self._is_dressed(found, spare.area, op)
            and self._fs.attributes(fd) == op.xattrs
        )

    def _fill(self, fd: int, spare: _Spare, data: bytes) -> bool:
        """False where somebody has come to open it meanwhile."""
        self._fs.forget_pages(fd, spare.room_bytes)
        self._fs.write(fd, data)
        if spare.stamp.size > len(data):
            self._fs.truncate(fd, len(data))
        return self._fs.end_lease(fd)

    def _is_dressed(self, found: os.stat_result, area: Area, op: Op) -> bool:
        """As a new file would be: what it may not be for a moment, nobody has to correct."""
        assert isinstance(op.new, File)
        if area.stage not in self._groups:
            folder = self._fs.fstat(area.stage)
            self._groups[area.stage] = folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()
        group = self._groups[area.stage]
        wanted = (
            op.uid if op.uid >= 0 else os.geteuid(),
            op.gid if op.gid >= 0 else group,
            op.new.mode,
        )
        return (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == wanted

    def _drop(self, spare: _Spare, *, untouched: bool) -> None:
        with self._lock:
            self._unfit.append((spare, untouched))

    # --- the end ---

    def remove_all(self, rescue: Rescue) -> None:
        """Frees this workspace's own."""
        with self._lock:
            self._unfit += [(spare, True) for spare in self._pool.surplus(0)]
        self._remove_unfit(rescue)
