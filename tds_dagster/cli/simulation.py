"""Turns a seed into agents at work: made-up sessions, tasks, tool calls, workflows and feedback, day by day.

Everything goes through the real client as an agent's program would call it. Equal seeds tell equal stories; the ids
are new each time, so that another round adds sessions and does not repeat them.
"""

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from ingest import TrainingDataStore

_SESSIONS_A_DAY = (8, 12)
_FIRST_HOUR, _WORKING_HOURS = 8, 9
_WORKFLOW_SHARE, _COMMENTED_SHARE = 0.5, 0.33  # of the sessions
_MAX_RETRIES = 2


class Tool(NamedTuple):
    """A tool as the simulation knows it."""

    name: str
    category: str
    median_ms: float
    failure_rate: float
    error: str


class Role(NamedTuple):
    """What one agent does all day."""

    agent_id: str
    model: str
    task_type: str
    requests: Sequence[str]
    tools: Sequence[Tool]


_SEARCH = Tool("web_search", "retrieval", 420.0, 0.04, "rate limit: 429 Too Many Requests")
_FETCH = Tool("fetch_page", "retrieval", 690.0, 0.08, "timeout: no answer within 10 s")
_QUERY = Tool("query_table", "database", 85.0, 0.05, "column not found: revenue_eur")
_PLOT = Tool("draw_chart", "output", 240.0, 0.02, "no rows to draw")
_LOOKUP = Tool("find_order", "database", 60.0, 0.03, "order not found")
_REFUND = Tool("issue_refund", "action", 310.0, 0.06, "refund refused: order older than 30 days")
_SEND = Tool("send_message", "output", 120.0, 0.01, "mailbox full")
_CALCULATE = Tool("calculate", "compute", 9.0, 0.02, "division by zero")
_TESTS = Tool("run_tests", "compute", 5200.0, 0.22, "3 tests failed")
_EDIT = Tool("edit_file", "action", 35.0, 0.03, "the text to replace occurs twice")

ROLES = (
    Role("researcher-1", "llama3:70b", "research", (
        "Which cities opened a tram line last year?", "Compare three open licences", "Who makes heat pumps in Spain?",
        "Find the latest release notes of PostgreSQL",
    ), (_SEARCH, _FETCH, _CALCULATE)),
    Role("analyst-1", "qwen2.5:32b", "analysis", (
        "Revenue by region, last quarter", "Why did returns go up in May?", "Forecast next week's orders",
        "Top ten products by margin",
    ), (_QUERY, _CALCULATE, _PLOT)),
    Role("support-1", "llama3:8b", "support", (
        "My parcel is late", "I was charged twice", "Change my delivery address", "How do I return a pair of shoes?",
    ), (_LOOKUP, _REFUND, _SEND)),
    Role("coder-1", "qwen2.5-coder:14b", "coding", (
        "Fix the flaky login test", "Add a --json option", "Explain this stack trace", "Speed up the nightly import",
    ), (_TESTS, _EDIT, _SEARCH)),
)  # fmt: skip


async def work(store: TrainingDataStore, days: Sequence[date], *, seed: int, progress: Callable[[int], None]) -> int:
    """Let every agent work through the days, all at the same time; gives how many records they stored.

    `progress` gets how many agent-days are done. Raises NotAccepted if the store is told to raise.
    """
    round_id = uuid.uuid4().hex[:6]
    done = 0

    async def work_through(role: Role) -> int:
        nonlocal done
        agent = _Agent(store, role, random.Random(f"{seed} {role.agent_id}"), round_id)  # noqa: S311 - a story, no secret
        for day in days:
            await agent.work_a_day(day)
            done += 1
            progress(done)
            await asyncio.sleep(0)  # the calls never wait, so the other agents get their turn here
        return agent.stored

    return sum(await asyncio.gather(*(work_through(role) for role in ROLES)))


class _Agent:
    """One agent: its dice, its clock, and the session that it is in."""

    def __init__(self, store: TrainingDataStore, role: Role, dice: random.Random, round_id: str) -> None:
        self._store, self._role, self._dice = store, role, dice
        self._instance_id = f"{role.agent_id}-{round_id}"
        self.stored = 0  # records
        self._sessions = 0
        self._now = datetime(1970, 1, 1, tzinfo=UTC)
        self._session_id = ""
        self._workflow_id: str | None = None

    def _pass(self, median_ms: float) -> float:
        """Let time pass, log-normally around a median; gives the milliseconds."""
        took_ms = round(self._dice.lognormvariate(0.0, 0.5) * median_ms, 1)
        self._now += timedelta(milliseconds=took_ms)
        return took_ms

    async def work_a_day(self, day: date) -> None:
        sessions = self._dice.randint(*_SESSIONS_A_DAY)
        for n in range(sessions):
            hour = _FIRST_HOUR + _WORKING_HOURS * (n + self._dice.random() * 0.6) / sessions
            self._now = datetime.combine(day, time(), UTC) + timedelta(hours=hour)
            self._sessions += 1
            self._session_id = f"{self._instance_id}-s{self._sessions}"
            self._workflow_id = f"{self._session_id}-flow" if self._dice.random() < _WORKFLOW_SHARE else None
            await self._work_a_session(self._dice.choice(self._role.requests))

    async def _work_a_session(self, request: str) -> None:
        await self._tell("agent_started", {"model": self._role.model})
        await self._tell("request_received", {"text": request})
        steps = self._dice.randint(2, 4)
        outcomes: list[bool] = []
        for step in range(steps):
            await self._report_workflow(request, steps, outcomes)
            outcomes.append(await self._work_a_task(f"{self._session_id}-t{step + 1}", request))
        await self._report_workflow(request, steps, outcomes)
        self._pass(900.0)
        good = all(outcomes)
        await self._tell("answer_given", {"succeeded": good, "steps": steps}, "info" if good else "warning")
        await self._judge(good=good)
        await self._tell("agent_stopped", {"reason": "done"})

    async def _work_a_task(self, task_id: str, request: str) -> bool:
        """One task, tried again after an error, and its history; gives whether it was completed."""
        asked = {"request": request, "tools": [tool.name for tool in self._role.tools]}
        await self._report_task(task_id, "pending", input_data=asked)
        started_at, error, attempt = self._now, "", 0
        for attempt in range(_MAX_RETRIES + 1):
            self._pass(40.0)
            await self._report_task(task_id, "running", retry_count=attempt, started_at=started_at)
            error = await self._use_tools(task_id)
            if not error:
                break
            await self._tell("task_failed", {"task_id": task_id, "error": error}, "error")
        await self._report_task(
            task_id, "failed" if error else "completed", retry_count=attempt, started_at=started_at,
            completed_at=self._now, execution_time_ms=(self._now - started_at) / timedelta(milliseconds=1),
            error=error or None, output_data=None if error else {"answer": f"done: {request}"},
        )  # fmt: skip
        return not error

    async def _use_tools(self, task_id: str) -> str:
        """One to three calls of tools; the first error ends them and is given back, else it is empty."""
        for _ in range(self._dice.randint(1, 3)):
            tool = self._dice.choice(self._role.tools)
            self._pass(600.0)
            await self._tell("tool_chosen", {"task_id": task_id, "tool": tool.name})
            failed = self._dice.random() < tool.failure_rate
            query = {"query": self._dice.choice(self._role.requests), "limit": self._dice.randint(1, 20)}
            result = {"rows": self._dice.randint(0, 40), "cached": self._dice.random() < 0.3}
            asked_at, took_ms = self._now, self._pass(tool.median_ms)
            await self._store.store_tool_execution(
                f"{task_id}-{uuid.uuid4().hex[:8]}", self._role.agent_id, task_id, tool.name, tool.category,
                query, None if failed else result, "failed" if failed else "completed", tool.error if failed else None,
                took_ms, self._now, timestamp=asked_at, session_id=self._session_id, workflow_id=self._workflow_id,
                instance_id=self._instance_id,
            )  # fmt: skip
            self.stored += 1
            if failed:
                return tool.error
        return ""

    async def _tell(self, event_type: str, payload: object, severity: str = "info") -> None:
        self._pass(15.0)
        await self._store.store_agent_event(
            event_type, self._role.agent_id, self._workflow_id, self._session_id, "demo", payload, severity,
            timestamp=self._now, instance_id=self._instance_id,
        )  # fmt: skip
        self.stored += 1

    async def _report_task(
        self, task_id: str, status: str, *, input_data: object = None, output_data: object = None,
        error: str | None = None, retry_count: int = 0, execution_time_ms: float | None = None,
        started_at: datetime | None = None, completed_at: datetime | None = None,
    ) -> None:  # fmt: skip
        self._pass(5.0)
        await self._store.store_agent_task(
            task_id, self._role.agent_id, self._instance_id, self._role.task_type, "normal", status,
            input_data, output_data, error, retry_count, _MAX_RETRIES, execution_time_ms=execution_time_ms,
            started_at=started_at, completed_at=completed_at, timestamp=self._now, session_id=self._session_id,
            workflow_id=self._workflow_id,
        )  # fmt: skip
        self.stored += 1

    async def _report_workflow(self, request: str, steps: int, outcomes: Sequence[bool]) -> None:
        """The state of the session's workflow, if it has one."""
        if self._workflow_id is None:
            return
        done = len(outcomes)
        results = [{"step": n + 1, "succeeded": succeeded} for n, succeeded in enumerate(outcomes)]
        self._pass(10.0)
        await self._store.store_workflow_data(
            self._workflow_id, self._role.task_type, "done" if done == steps else "running", {"request": request},
            results, name=f"{self._role.task_type}: {request}", current_step=f"step {min(done + 1, steps)}",
            total_steps=steps, completed_steps=done, assigned_agents=[self._role.agent_id], tags=["demo"],
            timestamp=self._now, session_id=self._session_id, instance_id=self._instance_id,
        )  # fmt: skip
        self.stored += 1

    async def _judge(self, *, good: bool) -> None:
        """A judge scores each session; a person says something about every third."""
        score = round(min(1.0, max(0.0, self._dice.gauss(0.85 if good else 0.3, 0.1))), 2)
        self._pass(30_000.0)
        await self._store.store_feedback(
            "session", self._session_id, "quality", score, "judge", timestamp=self._now,
            agent_id=self._role.agent_id, instance_id=self._instance_id,
        )  # fmt: skip
        self.stored += 1
        if self._dice.random() < _COMMENTED_SHARE:
            self._pass(120_000.0)
            await self._store.store_feedback(
                "session", self._session_id, "helpful", good, "human", None,
                "thank you" if good else "not what I asked for",
                timestamp=self._now, agent_id=self._role.agent_id, instance_id=self._instance_id,
            )  # fmt: skip
            self.stored += 1
