"""Refuses, before the commit point, what the filesystem would refuse only after it."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import replace

from .errors import PathRefused
from .paths import ancestors_of, leaf_of, parent_of
from .policy import Policy
from .states import Absent, Directory, File, Op, Snapshot
from .tree import Parents, Tree

_OWNER, _GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x10, 0x20  # tags of linux/posix_acl.h
_DEFAULT_ACL, _ACL = "system.posix_acl_default", "system.posix_acl_access"


class Preflight:
    """One commit's look at where its changes go."""

    def __init__(
        self,
        tree: Tree,
        parents: Parents,
        policy: Policy,
        bases: dict[str, Snapshot],
        *,
        explicit: set[str],
    ) -> None:
        self._explicit = explicit
        self._tree = tree
        self._fs = tree.fs
        self._parents = parents
        self._policy = policy
        self._bases = bases
        self._checked: dict[str, tuple[os.stat_result, int, dict[str, bytes]]] = {}

    def check(self, op: Op) -> Op:
        """The change with owner, attributes and mount filled in.

        Raises:
            PathRefused: it could not be finished.
        """
        top = self._replaced_above(op.path)
        if mount := self._parents.mount(top or op.path):
            op = replace(op, mount=mount)
        directory = None if top else self._parents.get(op.path, operation="write")
        if directory is None:  # its directory is made by this transaction
            return self._owned(self._inheriting(op, top or op.path))
        if not isinstance(op.old, Absent):
            op = self._check_entry(op, directory, self._directory(op.path, directory)[1])
        return self._owned(self._inheriting(op, op.path))

    def _inheriting(self, op: Op, path: str) -> Op:
        """What is new takes group and default ACL from the nearest directory that exists."""
        while (directory := self._parents.get(path, operation="write")) is None:
            path = parent_of(path)
        above, _, inherited = self._directory(path, directory)
        if not isinstance(op.old, Absent):
            return op
        if inherited and not op.xattrs:
            op = self._inherit(inherited[_DEFAULT_ACL], op)
        return replace(op, gid=above.st_gid) if op.gid < 0 and above.st_mode & stat.S_ISGID else op

    def _replaced_above(self, path: str) -> str:
        """The file on the way whose place a directory takes; "" where there is none."""
        bases = ((above, self._bases.get(above)) for above in ancestors_of(path))
        return next((a for a, base in bases if base is not None and isinstance(base.state, File)), "")

    def _directory(self, path: str, fd: int) -> tuple[os.stat_result, int, dict[str, bytes]]:
        """The directory's own stat, mount and default ACL; looked at once."""
        key = parent_of(path)
        if key not in self._checked:
            flags, mount = self._fs.facts(fd, "")
            if flags:
                raise _protected(path, f"{key or 'the workspace'}, which is immutable or append-only")
            if not self._fs.may_write_in(fd):
                raise PathRefused(
                    "write",
                    path,
                    expected="a directory that this user may write in",
                    found=f"no write permission in {key or 'the workspace'}",
                )
            xattrs = self._fs.xattrs(fd, ".")
            inherited = {name: value for name, value in xattrs.items() if name == _DEFAULT_ACL}
            self._checked[key] = self._fs.fstat(fd), mount, inherited
        return self._checked[key]

    def _inherit(self, acl: bytes, op: Op) -> Op:
        """A new file's ACL is its directory's default one, which stands in for the umask (acl(5))."""
        is_dir = isinstance(op.new, Directory)
        assert isinstance(op.new, File | Directory)
        asked = op.new.mode if op.path in self._explicit else 0o777 if is_dir else 0o666
        xattrs = {_ACL: acl, _DEFAULT_ACL: acl} if is_dir else {_ACL: acl}
        return replace(op, new=replace(op.new, mode=asked & _permissions(acl)), xattrs=xattrs)

    def _check_entry(self, op: Op, directory: int, mount: int) -> Op:
        """What is there may be replaced or removed."""
        assert op.old_stamp is not None
        if isinstance(op.old, File) and not op.old_stamp.mode & 0o222:
            raise PathRefused(
                "write",
                op.path,
                expected="a writable file",
                found=f"a read-only file (mode {op.old_stamp.mode:o})",
                hint="chmod it first: somebody protected it",
            )
        try:
            flags, mounted = self._fs.facts(directory, leaf_of(op.path))
        except FileNotFoundError:
            return op  # deleted since it was read: the commit's own look says so
        if flags:
            raise _protected(op.path, "an immutable or append-only file")
        if mounted != mount:
            return self._mounted(op)
        if isinstance(op.old, File) and self._bases[op.path].links > 1:
            return self._linked(op)
        return op

    def _mounted(self, op: Op) -> Op:
        if isinstance(op.old, Directory) and isinstance(op.new, Directory) and op.old == op.new:
            return op
        is_write = isinstance(op.old, File) and isinstance(op.new, File)
        if self._policy.mounted_files == "in_place" and is_write:
            return replace(op, in_place=True)
        raise PathRefused(
            "write",
            op.path,
            expected=f"a plain {'file' if isinstance(op.old, File) else 'directory'}",
            found="a mount point, which cannot be replaced",
            hint="unmount it first"
            if isinstance(op.old, Directory)
            else "Policy(mounted_files='in_place') writes over it; readers may see it half written",
        )

    def _linked(self, op: Op) -> Op:
        if self._policy.hard_links == "refuse":
            raise PathRefused(
                "write",
                op.path,
                expected="a file with one name",
                found=f"one with {self._bases[op.path].links} hard links",
                hint="Policy(hard_links='break') replaces this name only, 'in_place' all of them",
            )
        writes = isinstance(op.new, File)
        return replace(op, in_place=True) if self._policy.hard_links == "in_place" and writes else op

    def _owned(self, op: Op) -> Op:
        if self._policy.metadata == "drop":
            return replace(op, uid=-1, gid=-1, xattrs={})
        if op.old_stamp is not None and op.uid < 0:
            owner = (op.old_stamp.uid, op.old_stamp.gid)
            if owner != (os.geteuid(), os.getegid()):
                return replace(op, uid=owner[0], gid=owner[1])
        return op


def _permissions(acl: bytes) -> int:
    """The permission bits of an ACL as the kernel stores it: owner, mask (or group), others."""
    bits: dict[int, int] = dict(struct.iter_unpack("<HHxxxx", acl[4:]))
    return bits[_OWNER] << 6 | bits.get(_MASK, bits[_GROUP]) << 3 | bits[_OTHERS]


def _protected(path: str, found: str) -> PathRefused:
    return PathRefused(
        "write",
        path,
        expected="something that may be changed",
        found=found,
        hint="chattr -i -a takes the flag away",
    )


def collision(path: str, other: str) -> PathRefused:
    """Two names that are one on other systems."""
    return PathRefused(
        "write",
        path,
        expected="names that differ by more than case or Unicode form",
        found=f"{other!r}",
        hint="on macOS and Windows the two are one file; choose another name, or delete the other",
    )
