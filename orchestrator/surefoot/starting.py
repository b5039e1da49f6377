"""Making a run: its row, directory, status file and first trigger, in whatever transaction starts it."""

from __future__ import annotations

from surefoot_storage import FileTransaction, Workspace

from . import rows
from .errors import RunRefused
from .model import Run


def add_start(workspace: Workspace, files: FileTransaction, run: Run, *, adopt: bool = False) -> None:
    """Puts a new run into a transaction. In a thread.

    Raises:
        RunRefused: another run uses its directory, or there is something in it.
    """
    users = rows.runs_in(workspace, run.directory)
    if users:
        raise RunRefused(
            "start",
            run.id,
            expected=f"{run.directory} to itself",
            found=f"run {users[0]}, which uses it and is not over",
            hint="finish or cancel that run first, or use {run_id} in the workflow's directory",
        )
    if files.exists(run.directory) and files.is_dir(run.directory) and not adopt:
        names = files.list_dir(run.directory)
        if names:
            raise RunRefused(
                "start",
                run.id,
                expected=f"{run.directory} to be empty or missing",
                found=f"{len(names)} name(s) in it, {names[0]!r} among them",
                hint="adopt=True (--adopt) takes the directory over with what is in it",
            )
    files.mkdir(run.directory)
    files.write_bytes(run.status_path, run.status.encode())
    files.statements += [*rows.insert_run(run), rows.append_audit(run, "started", step=None)]


def same_run(there: Run, new: Run, on_exists: str) -> Run:
    """The run that is there, where starting it again is the same.

    Raises:
        RunRefused: it is another one, or `on_exists` is `refuse`.
    """
    same = (there.workflow, there.input) == (new.workflow, new.input)
    if same and on_exists == "return":
        return there
    raise RunRefused(
        "start",
        new.id,
        expected="a new id" if same else "the workflow and input that the run was started with",
        found=f"a run of {there.workflow} that is {there.state.value}"
        + ("" if same else ", with other input"),
        hint="choose another id, or drop on_exists='refuse'" if same else "choose another id",
    )
