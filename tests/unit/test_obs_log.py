"""The log says what happened and never what a user wrote."""

import io
import json

from mortice.obs.log import MAX_VALUE_CHARS, Log, setup_log


def lines(form: str, write) -> list[str]:
    stream = io.StringIO()
    setup_log(form, "INFO", stream)
    write(Log("serve"))
    return stream.getvalue().splitlines()


def test_json_has_fields():
    (line,) = lines("json", lambda log: log.info("request ended", request_id="r1", status=200))
    entry = json.loads(line)
    assert (entry["event"], entry["room"], entry["request_id"], entry["status"]) == (
        "request ended",
        "serve",
        "r1",
        200,
    )


def test_secrets_and_prompts_are_masked():
    (line,) = lines("json", lambda log: log.info("x", prompt="my diary", Authorization="Bearer sk-1"))
    assert "diary" not in line
    assert "sk-1" not in line


def test_values_cannot_forge_lines():
    (line,) = lines("human", lambda log: log.warning("x", path="a\nERROR forged", long="y" * 1000))
    assert "forged" in line
    assert len(line) < MAX_VALUE_CHARS + 100


def test_errors_carry_their_traceback():
    def write(log):
        try:
            raise ValueError("broken")
        except ValueError as error:
            log.error("bug", exc=error)

    (line,) = lines("json", write)
    assert "ValueError: broken" in json.loads(line)["traceback"]
