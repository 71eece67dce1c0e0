"""/v1/models as Anthropic's clients expect it."""
from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from blackwell_infer.serve.errors import HttpError
from blackwell_infer.serve.host import Host


def one(host: Host) -> dict[str, Any]:
    """The served model. `created_at` is when it was loaded."""
    context = host.llm.info().max_context
    return {"id": host.name, "type": "model", "display_name": host.name, "max_input_tokens": context,
            "created_at": datetime.fromtimestamp(host.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "max_tokens": context, "capabilities": None}


def listed(host: Host, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the models, of which there is one."""
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= 1000):
        raise HttpError(400, f"limit {limit!r} must be a number from 1 to 1000", "limit")
    beside = {name: query[name] for name in ("before_id", "after_id") if name in query}
    for name, id in beside.items():
        if id != host.name:
            raise HttpError(400, f"{name} {id!r} is none of the models", name)
    data = [] if beside else [one(host)]
    edge = data[0]["id"] if data else None
    return {"data": data, "first_id": edge, "last_id": edge, "has_more": False}
