import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.offline import Fault, FaultKind, Settings, UsageKind
from claude_daemon.offline.markers import MarkerError, apply, strip

EVERY_MARKER = {
    "[[tokens=200]]": Settings(tokens=200),
    "[[text=a  [b] c]]": Settings(text="a  [b] c"),
    "[[bytes=10]]": Settings(reply_bytes=10),
    "[[history]]": Settings(history=True),
    "[[system]]": Settings(system=True),
    "[[thinking]]": Settings(thinking=True),
    "[[refusal]]": Settings(refusal=True),
    "[[tool=A]] [[tool=B]]": Settings(tools=("A", "B")),
    '[[input={"a":[[1]]}]]': Settings(inputs=({"a": [[1]]},)),
    "[[repeat=3]]": Settings(repeat=3),
    "[[one-by-one]]": Settings(one_by_one=True),
    "[[no-structured]]": Settings(structured=False),
    "[[no-format]]": Settings(formats=False),
    "[[invalid]]": Settings(invalid=True),
    "[[usage=negative]]": Settings(usage=UsageKind.NEGATIVE),
    "[[first=300ms]]": Settings(first_s=0.3),
    "[[pace=1.5s]]": Settings(pace_s=1.5),
    "[[hang]]": Settings(fault=Fault(kind=FaultKind.HANG)),
    "[[error=429]] [[retry-after=2]]": Settings(fault=Fault(kind=FaultKind.ERROR, status=429), retry_after_s=2),
    "[[stall=3]]": Settings(fault=Fault(kind=FaultKind.STALL, after=3)),
    "[[cut=0]]": Settings(fault=Fault(kind=FaultKind.CUT, after=0)),
    "[[malformed=1]]": Settings(fault=Fault(kind=FaultKind.MALFORMED, after=1)),
    "[[error-event=2]]": Settings(fault=Fault(kind=FaultKind.ERROR_EVENT, after=2)),
    "[[times=1]]": Settings(times=1),
    "[[round=2]]": Settings(round=2),
    "[[drift]]": Settings(drift=True),
}


@pytest.mark.parametrize("marker", EVERY_MARKER)
def test_a_marker_turns_its_knob_and_leaves_the_text(marker: str) -> None:
    assert apply(Settings(), f"say {marker} hello") == (EVERY_MARKER[marker], "say hello")


@pytest.mark.parametrize(
    "text", ["[[unknown]]", "if [[ -f x ]]; then", "[[Wiki Link]]", "[[tokens", "[[", "]]", "a[[b=c]]"]
)
def test_what_only_looks_like_a_marker_stays_in_the_text(text: str) -> None:
    assert apply(Settings(), text) == (Settings(), text)


@pytest.mark.parametrize(
    "text",
    [
        "[[tokens]]", "[[tokens=]]", "[[tokens=many]]", "[[tokens=0]]", "[[tokens=-1]]", "[[tokens=²]]",
        "[[tokens=9999999999]]", "[[tokens=5", "[[bytes=99999999999]]", "[[pace=10]]", "[[pace=fast]]",
        "[[error=418]]", "[[tool=]]", "[[history=yes]]", "[[usage=cheap]]", "[[input=[1]]]", "[[input={]]",
        '[[input={"a":1} x]]', '[[input={"a":"\\ud800"}]]', "[[input=" + "[" * 5000,
    ],
)  # fmt: skip
def test_a_bad_value_is_an_error(text: str) -> None:
    with pytest.raises(MarkerError):
        apply(Settings(), text)
    assert strip(text) == text


def test_the_last_fault_wins_over_earlier_ones_and_over_the_default() -> None:
    defaults = Settings(fault=Fault(kind=FaultKind.HANG), tokens=7)
    settings, _ = apply(defaults, "[[error=500]] [[cut=1]]")
    assert settings == Settings(fault=Fault(kind=FaultKind.CUT, after=1), tokens=7)


@given(st.text(alphabet='[]=abcdefghijklmnopqrstuvwxyz 0123456789{}"-', max_size=60))
def test_any_text_is_parsed_or_refused_with_a_marker_error(text: str) -> None:
    try:
        _, said = apply(Settings(), text)
    except MarkerError:
        return
    assert len(said) <= len(text)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(fault=Fault(kind=FaultKind.CUT, after=2), times=1, tools=("A",), inputs=({"a": 1},)),
        Settings(usage=UsageKind.ABSENT, pace_s=0.5, text="hi"),
    ],
)
def test_settings_survive_the_way_through_json(settings: Settings) -> None:
    assert (
        Settings.from_json(settings.to_json() | {"tools": list(settings.tools), "inputs": list(settings.inputs)})
        == settings
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "settings"),
        ({"colour": 1}, "colour"),
        ({"tokens": "5"}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"pace_s": -1}, "pace_s"),
        ({"pace_s": "1"}, "pace_s"),
        ({"usage": "cheap"}, "usage"),
        ({"tools": "A"}, "tools"),
        ({"tools": [1]}, "tools"),
        ({"inputs": [1]}, "inputs"),
        ({"drift": 1}, "drift"),
        ({"text": 1}, "text"),
        ({"fault": {}}, "fault.kind"),
        ({"fault": {"kind": "error", "status": 418}}, "status"),
        ({"fault": {"kind": "cut", "after": -1}}, "after"),
        ({"fault": {"kind": "cut", "x": 1}}, "x"),
    ],
)
def test_bad_settings_name_their_field(data: object, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Settings.from_json(data)
