"""One session with everything that a run can hold: a conversation with tool calls, a failure, verdicts."""

from ingest import TrainingDataStore

SESSION, DAY = "session-42", "2024-05-15"
HOSTILE = "</script></pre><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\x1b[2J"
ANSWER = '{"order_id": "A-17", "status": "delayed", "days_left": 2}'


def tell_story(store: TrainingDataStore, *, said: str = HOSTILE) -> None:
    """Store the session; `said` is what the user says last, and what a tool brings back."""
    ids = {"session_id": SESSION, "agent_id": "support-1"}

    def at(second: float) -> str:
        return f"{DAY}T08:30:{second:09.6f}Z"

    def say(second: float, role: str, content: object, **more: object) -> str | None:
        message = {"role": role, "content": content, **more}
        return store.sync.store_agent_event(
            f"{role}_message",
            payload=message,
            timestamp=at(second),
            **ids,
        )

    store.sync.store_agent_event("agent_started", payload={"model": "llama3:8b"}, timestamp=at(0), **ids)
    call = {"id": "call-1", "type": "function", "function": {"name": "find_order", "arguments": '{"order_id":"A-17"}'}}
    for status, second in (("pending", 1), ("running", 1.2), ("completed", 9)):
        store.sync.store_agent_task(
            "task-1", task_type="support", status=status, timestamp=at(second), execution_time_ms=7800.0,
            input_data={"request": "Where is my parcel?"}, session_id=SESSION, agent_id="support-1",
        )  # fmt: skip
    say(1.5, "system", "Be kind, and brief.")
    say(2, "user", "Where is my parcel A-17?")
    say(3, "assistant", None, tool_calls=[call])
    store.sync.store_tool_execution(
        "call-1", task_id="task-1", tool_name="find_order", tool_category="database",
        input_params={"order_id": "A-17"}, output_result=ANSWER, execution_time_ms=850.0, timestamp=at(3.1),
        completed_at=at(3.95), session_id=SESSION, agent_id="support-1", metadata={"tool_call_id": "call-1"},
    )  # fmt: skip
    say(4, "tool", ANSWER, tool_call_id="call-1")
    answered = say(5, "assistant", "It is late, two days more. Sorry!")
    say(8, "user", said)
    store.sync.store_agent_task(
        "task-2", task_type="refund", status="failed", retry_count=2, error="refund refused", timestamp=at(20),
        started_at=at(12), session_id=SESSION, agent_id="support-1",
    )  # fmt: skip
    store.sync.store_tool_execution(
        "call-2", task_id="task-2", tool_name="issue_refund", status="failed", error=f"timeout {said}",
        input_params={"rows": list(range(60)), "said": said}, timestamp=at(14), session_id=SESSION,
    )  # fmt: skip
    store.sync.store_agent_event("refund_tried", payload={"n": 1}, timestamp=at(15), **ids)
    store.sync.store_workflow_data(
        "flow-1", name="parcel", phase="done", current_step="step 2", total_steps=2, completed_steps=2,
        state_data={"open": False}, timestamp=at(21), session_id=SESSION,
    )  # fmt: skip
    store.sync.store_feedback("session", SESSION, "quality", 0.75, source="judge", timestamp=at(30))
    store.sync.store_feedback("task", "task-2", "reward", 0, source="code", timestamp=at(31))
    store.sync.store_feedback(
        "record", str(answered), "better", None, corrected_output="It comes on Friday.", comment="no date",
        source="human", timestamp=at(32),
    )  # fmt: skip
    store.sync.flush(30)
