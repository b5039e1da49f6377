"""What a workspace does where more than one answer is right. Every choice has a safe default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """Choices for a whole workspace.

    Attributes:
        metadata: `preserve` carries owner, permission bits, ACL and `user.*` attributes over to the new
            version, and refuses where it may not; `drop` gives new versions the committing user.
        hard_links: what a write does to a file with several names: `break` replaces this name only,
            `refuse`, or `in_place` writes over the shared file.
        mounted_files: a single file that is itself a mount point (a container's `-v file:file`) cannot be
            replaced: `refuse`, or write over it `in_place`.
        on_race: an edit that lands in the microseconds of the swap: `ours` keeps the commit's version in
            place, `theirs` puts the edit back, `block` puts it back and takes no more file commits until
            somebody decides. The other version is always kept.
        on_recovery: the same for an edit that was made after a crash, before the next open.
        spare_files: whether displaced files are written again, for the same path, instead of being freed
            (ext4 and xfs): `auto` where freeing is measured to be slow. `never` for a workspace that is
            exported (NFS, SMB, virtiofs): a holder of a file handle may see a version not yet committed.

    Written `in_place`, a file is safe from crashes, but others may read it half written.
    """

    metadata: Literal["preserve", "drop"] = "preserve"
    hard_links: Literal["break", "refuse", "in_place"] = "break"
    mounted_files: Literal["refuse", "in_place"] = "refuse"
    on_race: Literal["ours", "theirs", "block"] = "ours"
    on_recovery: Literal["theirs", "ours", "block"] = "theirs"
    spare_files: Literal["auto", "never", "always"] = "auto"
