"""A run's files as they were when it came to a step, for a new run that begins there. For worker threads."""

from __future__ import annotations

from surefoot_storage import (
    Absent,
    Change,
    Directory,
    File,
    FileTransaction,
    InputError,
    UndoRefused,
    Workspace,
    net,
)

from . import rows
from .model import Run
from .starting import add_start

_STREAM_BYTES = 1 << 20


def fork_files(workspace: Workspace, run: Run, step: str, new: Run) -> FileTransaction:
    """The transaction that makes the new run, with a copy of what the old one's directory held then.

    Raises:
        InputError: the run never came to that step.
        UndoRefused: an old version is not kept any more. RunRefused: the directory is taken.
    """
    seq = rows.seq_before(workspace, run.id, step)
    if seq is None:
        raise InputError(
            "fork", f"{run.id}/{step}", expected="a step that the run has come to",
            found="one that it has not",
            hint="surefoot log shows which",
        )  # fmt: skip
    files = workspace.begin(label=f"{new.id}/fork", owner=new.id)
    try:
        add_start(workspace, files, new)
        since = {change.path: change for change in net(workspace.history.of(run.id, after=seq))}
        _copy_unchanged(workspace, files, run, new, since)
        _copy_earlier(workspace, files, run, new, since)
    except BaseException:
        files.fence()
        raise
    return files


def _copy_unchanged(
    workspace: Workspace, files: FileTransaction, run: Run, new: Run, since: dict[str, Change]
) -> None:
    """What nobody has changed since, other people's files included."""
    if not files.is_dir(run.directory):
        return
    for path, is_dir in list(files.walk(run.directory)):
        there = new.directory + path[len(run.directory) :]
        if path in since or path == run.status_path:
            continue
        if is_dir:
            files.mkdir(there)
            continue
        state = files.load(path).state
        assert isinstance(state, File)
        with (
            workspace.open(files, path) as source,
            workspace.create(files, there, mode=state.mode & 0o777) as out,
        ):
            while chunk := source.read(_STREAM_BYTES):
                out.write(chunk)


def _copy_earlier(
    workspace: Workspace, files: FileTransaction, run: Run, new: Run, since: dict[str, Change]
) -> None:
    """What has been changed since, as it was."""
    for path, change in sorted(since.items(), key=lambda item: item[0].count("/")):
        if path == run.status_path or not path.startswith(f"{run.directory}/"):
            continue
        there, before = new.directory + path[len(run.directory) :], change.before
        if isinstance(before, Absent):
            continue
        if isinstance(before, Directory):
            files.mkdir(there, mode=before.mode & 0o777)
            continue
        if not workspace.history.holds(before, path):
            raise UndoRefused(
                "fork", f"{run.id}: {path}", expected="its old content", found="none any more",
                hint="the retention has let it go, or it was forgotten",
            )  # fmt: skip
        with workspace.create(files, there, mode=before.mode & 0o777) as out:
            out.writelines(workspace.history.chunks(before, path))
