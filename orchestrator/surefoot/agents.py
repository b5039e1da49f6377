"""`engine.agents`: launching agents of nobody's run, looking at all, and deciding about their work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from anyio import to_thread

from surefoot_storage import ChangeSet, Commit, Conflict, FileTransaction, InputError

from . import agentlooks, checks, rows
from .agentspec import Agent, Verified, Work, matcher
from .drivers import with_driver
from .errors import ChangesRefused, RunRefused
from .files import contents
from .launches import work_of
from .opened import OpenEngine
from .pending import Pender, Pending
from .rows import AgentRow
from .supervising import LOOK_S, Supervisor, sweep
from .taking import picks, take
from .tending import copy_name, ignored, verify_once

WHY_CHARS_MAX = 500


@dataclass(frozen=True)
class Said:
    """A piece of what an agent has said."""

    text: str
    offset: int  # of its first byte; later than asked for where older output was let go
    next_offset: int


class Agents:
    """Of one engine. An attempt is known by its id, or the beginning of it."""

    def __init__(
        self, engine: Callable[[], OpenEngine], supervisor: Callable[[], Supervisor], pender: Pender
    ) -> None:
        self._engine = engine
        self._supervisor = supervisor
        self._pending = pender

    # --- launching ---

    def launch(
        self, argv: Sequence[str] | Agent | None = None, *, directory: str = "", **options: Any
    ) -> Pending[AgentRow]:
        """Launches a command in a working copy of a directory, for nobody's run. Durable when this returns.

        What it changes is sealed, and nothing of it is in the workspace before `commit`.

        Args:
            argv: the command with its arguments, or an Agent.
            directory: what is copied, from the workspace's root; all of it, unless given.
            options: those of `Agent`.

        Raises:
            InputError: it cannot be launched like this.
        """

        def work() -> AgentRow:
            engine = self._engine()
            spec = with_driver(Agent.parse(argv, directory or "the workspace", **options))
            files = engine.workspace.begin()
            try:
                if directory and not files.is_dir(directory):
                    raise InputError(
                        "launch agent", directory, expected="a directory of the workspace", found="none"
                    )
                digest = contents(files, "", spec.reads, "")
            finally:
                files.fence()
            agent_id = f"try-{engine.new_id()[:12]}"
            now = engine.clock.now()
            row = AgentRow(
                agent_id, "", 0, "", 1, spec.kind, directory.strip("/"), spec, digest, "wanted", 0.0,
                created_at=now,
            )  # fmt: skip
            self._supervisor().own.add(agent_id)
            engine.workspace.write_rows([rows.insert_agent(row)])
            return row

        async def operation() -> AgentRow:
            row = await to_thread.run_sync(work)
            self._supervisor().notify()
            return row

        return self._pending("agents.launch", operation, directory=directory or None)

    def wait(self, agent_id: str) -> Pending[Work]:
        """What an attempt has come to, once it is over. This engine watches it where nobody does."""

        async def operation() -> Work:
            row = await self._row(agent_id)
            self._supervisor().own.add(row.id)
            self._supervisor().notify()
            while row.state != "over":  # it may be another process that watches it
                await anyio.sleep(min(row.spec.poll_s, LOOK_S) / 2)
                row = await self._row(row.id)
            return await to_thread.run_sync(work_of, self._engine().workspace, row)

        return self._pending("agents.wait", operation, agent_id=agent_id)

    # --- looking ---

    def attempts(
        self, *, run_id: str | None = None, states: Sequence[str] = (), limit: int | None = None
    ) -> Pending[list[AgentRow]]:
        """Attempts, the latest first.

        Raises:
            InputError: an unknown state, or a limit below 1.
        """
        checks.choices("list agents", "", "states", states, agentlooks.STATES, error=InputError)
        if limit is not None:
            checks.count("list agents", "", "limit", limit, error=InputError)
        return self._pending(
            "agents.attempts",
            lambda: to_thread.run_sync(
                lambda: rows.agents(self._engine().workspace, run_id=run_id, states=states, limit=limit or -1)
            ),
            run_id=run_id,
        )

    def get(self, agent_id: str) -> Pending[AgentRow]:
        """One attempt.

        Raises:
            InputError: there is none of that id.
        """
        return self._pending("agents.get", lambda: self._row(agent_id), agent_id=agent_id)

    def changes(self, agent_id: str) -> Pending[ChangeSet]:
        """What is sealed of its work; of an attempt that could not be sealed, after one more try.

        Raises:
            CopyRefused, ChangesRefused: it cannot be, or it is not over.
        """
        return self._pending("agents.changes", lambda: self._sealed(agent_id), agent_id=agent_id)

    def diff(self, agent_id: str) -> Pending[str]:
        """The same as one unified diff against what is in the workspace now."""

        async def operation() -> str:
            row, changes = await self._row(agent_id), await self._sealed(agent_id)
            workspace = self._engine().workspace
            return await to_thread.run_sync(agentlooks.diff_of, workspace, copy_name(row.id), changes)

        return self._pending("agents.diff", operation, agent_id=agent_id)

    def logs(self, agent_id: str, offset: int = 0) -> Pending[Said]:
        """What it has said from an offset in bytes on, as far as it is kept."""
        checks.count("read log", agent_id, "offset", offset, least=0, most=1 << 62, error=InputError)

        async def operation() -> Said:
            row = await self._row(agent_id)
            found = await to_thread.run_sync(
                agentlooks.said, self._engine().workspace.copies, copy_name(row.id), offset
            )
            return Said(*found)

        return self._pending("agents.logs", operation, agent_id=agent_id)

    def doctor(self) -> Pending[list[dict[str, str]]]:
        """What is wrong, or nobody has decided about: one finding each, with what helps."""

        def work() -> list[dict[str, str]]:
            return agentlooks.findings(self._engine().workspace)

        return self._pending("agents.doctor", lambda: to_thread.run_sync(work))

    # --- stopping ---

    def stop(self, agent_id: str, why: str = "somebody has stopped it") -> Pending[None]:
        """Whoever watches it ends it, with everything it has started; what it has done is sealed.

        Durable: where nobody watches it, it ends once somebody does.
        """
        checks.text("stop agent", agent_id, "why", why, most=WHY_CHARS_MAX, error=InputError)

        async def operation() -> None:
            row = await self._row(agent_id)
            if row.state == "over":
                raise RunRefused("stop", row.id, expected="an agent that is not over", found=row.outcome)
            await self._write([rows.stop_agent(row.id, why)])

        return self._pending("agents.stop", operation, agent_id=agent_id)

    def stop_all(self, why: str) -> Pending[int]:
        """Ends all of them, and none is launched before `start_again`: also after a restart."""
        checks.text("stop agents", "", "why", why, most=WHY_CHARS_MAX, error=InputError)

        async def operation() -> int:
            found = await to_thread.run_sync(
                lambda: rows.agents(self._engine().workspace, states=agentlooks.STATES[:-1])
            )
            hold = rows.pause_queue(rows.STOPPED, why, self._engine().clock.now())
            await self._write([hold, rows.stop_agents(why)])
            return len(found)

        return self._pending("agents.stop_all", operation)

    def start_again(self) -> Pending[None]:
        """Agents may be launched again."""
        return self._pending("agents.start_again", lambda: self._write([rows.resume_queue(rows.STOPPED)]))

    # --- deciding about its work ---

    def commit(
        self, agent_id: str, *, paths: Sequence[str] | None = None, ours: Sequence[str] = (),
        theirs: Sequence[str] = (), digest: str | None = None,
    ) -> Pending[Commit]:  # fmt: skip
        """Its sealed changes become the workspace's, all of them or nothing, by a transaction of their own.

        For work of no run, and to salvage what a failed attempt has done; a step takes it by `tx.take`.

        Args:
            agent_id: of the attempt.
            paths: as in `Transaction.take`, and so are
            ours: these
            theirs: two.
            digest: of what was looked at; refused where it is another one.

        Raises:
            Conflict: somebody has changed the same meanwhile.
            ChangesRefused: there is nothing sealed, or it holds what cannot be committed.
        """

        async def operation() -> Commit:
            row, changes = await self._row(agent_id), await self._sealed(agent_id)
            if digest is not None and not changes.digest.startswith(digest):
                raise ChangesRefused(
                    "commit", row.id, expected=f"the changes {digest[:16]}", found=changes.digest[:16],
                    hint=f"surefoot workspace diff {row.id}",
                )  # fmt: skip
            if row.taken == "discarded":
                raise ChangesRefused("commit", row.id, expected="work that is kept", found="discarded work")
            workspace = self._engine().workspace

            def prepare() -> FileTransaction:
                files = workspace.begin(label=f"agent/{row.id}")
                if row.spec.reads and contents(files, "", row.spec.reads, "") != row.reads_digest:
                    raise Conflict(
                        "commit", row.id, expected=f"{', '.join(row.spec.reads)} as the agent has read it",
                        found="other contents", hint="launch it again over what is there now",
                    )  # fmt: skip
                take(
                    workspace, files, copy_name(row.id), changes, subject=row.id,
                    picked=picks(paths, matcher), ours=matcher(ours), theirs=matcher(theirs),
                )  # fmt: skip
                files.statements.append(rows.mark_taken(row.id))
                return files

            return await self._engine().executor.commits.run(prepare)

        return self._pending("agents.commit", operation, agent_id=agent_id, digest=digest)

    def verify(self, agent_id: str, argv: Sequence[str], *, timeout_s: float = 600.0) -> Pending[Verified]:
        """Runs a command in the working copy, as its verifying commands are; what it changes is not sealed.

        Raises:
            ChangesRefused, CopyRefused, LaunchFailed: it is not over, its copy is gone, or it does not start.
        """
        checks.seconds("verify", agent_id, "timeout_s", timeout_s, above=True, error=InputError)

        async def operation() -> Verified:
            row = await self._row(agent_id)
            _refuse_open("verify", row)
            folder = f"verify-{self._engine().new_id()[:12]}"
            workspace = self._engine().workspace
            look = partial(verify_once, workspace, row, folder, tuple(argv), timeout_s)
            while True:
                found = await to_thread.run_sync(look)
                if found is not None:
                    return found
                await anyio.sleep(min(row.spec.poll_s, LOOK_S) / 2)

        return self._pending("agents.verify", operation, agent_id=agent_id)

    def discard(self, agent_id: str) -> Pending[None]:
        """Its work is given up: the copy and what was sealed of it are removed. Its row stays.

        Raises:
            ChangesRefused: it is not over.
        """

        def work(row: AgentRow) -> None:
            workspace = self._engine().workspace
            if row.taken in ("", "discarded"):
                workspace.write_rows([rows.mark_discarded(row.id)])
            with contextlib.suppress(FileNotFoundError):
                if copy_name(row.id) in workspace.copies.names():
                    workspace.copies.remove(copy_name(row.id), discard=True)

        async def operation() -> None:
            row = await self._row(agent_id)
            _refuse_open("discard", row)
            await to_thread.run_sync(work, row)

        return self._pending("agents.discard", operation, agent_id=agent_id)

    def clean(self, *, kept_s: float) -> Pending[list[str]]:
        """Removes copies of what is over for longer, and committed, unchanged or given up; returns their ids.

        Raises:
            InputError: a negative length.
        """
        checks.seconds("clean agents", "", "kept_s", kept_s, error=InputError)
        return self._pending("agents.clean", lambda: to_thread.run_sync(sweep, self._engine(), kept_s))

    # --- how ---

    async def _row(self, agent_id: str) -> AgentRow:
        return await to_thread.run_sync(rows.get_agent, self._engine().workspace, agent_id)

    async def _sealed(self, agent_id: str) -> ChangeSet:
        row = await self._row(agent_id)
        _refuse_open("look at the changes of", row)
        workspace = self._engine().workspace
        if row.taken == "discarded":
            raise ChangesRefused("look at", row.id, expected="work that is kept", found="discarded work")

        def seal() -> ChangeSet:
            changes = workspace.copies.seal(copy_name(row.id), ignored(row.spec))
            if not row.digest:
                workspace.write_rows([rows.change_agent(row, digest=changes.digest)])
            return changes

        return await to_thread.run_sync(seal)

    async def _write(self, statements: Sequence[Any]) -> None:
        await to_thread.run_sync(lambda: self._engine().workspace.write_rows(list(statements)))
        self._supervisor().notify()


def _refuse_open(operation: str, row: AgentRow) -> None:
    if row.state != "over":
        raise ChangesRefused(
            operation, row.id, expected="an agent that is over", found=f"one that is {row.state}",
            hint=f"surefoot agent stop {row.id}",
        )  # fmt: skip
