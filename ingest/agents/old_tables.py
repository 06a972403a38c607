"""What the tables of the old way were, as data: where each one's rows belong now, and the call that takes them there.

The definitions are those of `app/database/agent_tables.py` in the public repository Team-Deepiri/diri-cyrex at commit
944c8ec. The migration of rows and the search for code that uses the tables both follow it.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Target = Literal["store", "conversations", "files", "report"]


class OldTable(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the old way."""

    name: str
    key: str  # its primary key, text
    moment: str | None  # the column with the time that a row is of
    target: Target
    kind: str | None = None  # of the store, where its rows become records
    call: str  # what code is to call instead
    place: str  # in `routing.PLACES`


OLD_TABLES: Mapping[str, OldTable] = {
    table.name: table
    for table in (
        OldTable(
            name="agent_events", key="event_id", moment="created_at", target="store", kind="events", place="events",
            call="await store.store_agent_event(event_type, agent_id, session_id=…, payload=…)",
        ),
        OldTable(
            name="agent_tasks", key="task_id", moment="created_at", target="store", kind="tasks", place="tasks",
            call="await store.store_agent_task(task_id, agent_id, status=…, input_data=…, output_data=…)",
        ),
        OldTable(
            name="tool_executions", key="execution_id", moment="created_at", target="store", kind="tool_executions",
            place="tool_executions",
            call="await store.store_tool_execution(execution_id, agent_id, task_id, tool_name, input_params=…)",
        ),
        OldTable(
            name="workflows", key="workflow_id", moment="updated_at", target="store", kind="workflows",
            place="workflows", call="await store.store_workflow_data(workflow_id, workflow_type, phase, state_data=…)",
        ),
        OldTable(
            name="agent_interactions", key="interaction_id", moment="created_at", target="conversations",
            place="conversations", call="await messages.add_message(instance_id, role, content, agent_id=…)",
        ),
        OldTable(
            name="agent_configs", key="agent_id", moment="updated_at", target="files", place="configs",
            call="a file configs/agents/<agent_id>.toml; Configs().agent(agent_id)",
        ),
        OldTable(
            name="prompt_templates", key="template_id", moment="updated_at", target="files", place="prompts",
            call="a file configs/prompts/<name>.toml; Configs().prompt(name)",
        ),
        OldTable(
            name="agent_instances", key="instance_id", moment="started_at", target="report", place="instances",
            call="with Instances(store).running(agent_id) as instance: …",
        ),
        OldTable(
            name="agent_metrics", key="metric_id", moment="recorded_at", target="report", place="metrics",
            call="Metrics().gauge(name, documentation).set(value), scraped by Prometheus",
        ),
    )
}  # fmt: skip
