"""The key of a service: where it comes from, and who has it."""

import pytest

from deployments.bento.serving.limits import Refusal, check_key, key_of


@pytest.mark.parametrize("held", ["k-123", "k-123\n", " k-123\r\n"])
def test_the_line_end_of_a_file_is_no_part_of_the_key(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDENT_KEY", held)
    assert key_of("STUDENT_KEY") == "k-123"
    check_key("Bearer k-123", key_of("STUDENT_KEY"))


@pytest.mark.parametrize(
    ("held", "told"), [("", "holds no key"), (" \n", "holds no key"), ("clé", "ASCII"), ("a b", "ASCII")]
)
def test_a_key_that_no_request_could_show_starts_no_service(
    held: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDENT_KEY", held)
    with pytest.raises(RuntimeError, match=told) as error:
        key_of("STUDENT_KEY")
    assert "STUDENT_KEY" in str(error.value)
    assert not held.strip() or held not in str(error.value)


def test_without_a_variable_there_is_no_key_and_everybody_is_answered() -> None:
    assert key_of("") == ""
    for header in (None, "", "Bearer x", "Basic \xe9"):
        check_key(header, "")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer kk", "Basic k", "k", "Bearer \xe9"])
def test_whoever_does_not_show_the_key_is_refused(header: str | None) -> None:
    with pytest.raises(Refusal, match="Authorization"):
        check_key(header, "k")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_in_any_case(scheme: str) -> None:
    check_key(f"{scheme} k", "k")
