"""One thing that was looked at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``reason`` is what was found, ``todo`` what to do about it."""

    name: str
    status: Status
    reason: str = ""
    todo: str = ""

    def line(self) -> str:
        return json.dumps(asdict(self))
