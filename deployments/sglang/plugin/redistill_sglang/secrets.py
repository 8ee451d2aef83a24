"""API keys are left out of the log: SGLang writes all its arguments there when it starts."""

import logging
import re
from typing import Any

_KEY = re.compile(r"""(api_key['"]?\s*[=:]\s*)(['"])(?:(?!\2).)+\2""")


def register() -> None:
    """Have every record of this process told without keys."""
    make = logging.getLogRecordFactory()

    def without_keys(*values: Any, **named: Any) -> logging.LogRecord:
        record = make(*values, **named)
        text = record.getMessage()
        if (told := _KEY.sub(r"\1\2***\2", text)) != text:
            record.msg, record.args = told, ()
        return record

    logging.setLogRecordFactory(without_keys)
