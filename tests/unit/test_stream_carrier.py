"""The two carriers as one, over a server whose events come in a written order."""

from collections import deque
from typing import Any

from tests.contract.test_carrier_contract import question
from tests.streams import NoMessages
from wardround_common.types import SiteId
from wardround_server.rounds.carrier import Answer
from wardround_server.stream.carrier import Patience, StreamCarrier
from wardround_server.stream.session import Event, Lost, Opened

SITE = SiteId("a")


class ScriptedServer:
    """One site's sessions.

    Args:
        events: that have happened.
        when_asked: that happen once the site is asked.
    """

    def __init__(self, events: list[Event], when_asked: list[Event]) -> None:
        self._events, self._when_asked = deque(events), when_asked
        self.asked: list[int] = []
        self.invited = 0

    def knows(self, site: SiteId) -> bool:
        return site == SITE

    def invite(self, site: SiteId) -> Any:
        self.invited += 1

    def session(self, site: SiteId) -> Any:
        assert site == SITE
        return self

    def ask(self, question: Any, state: Any, deadline_s: float) -> None:
        self.asked.append(question.step)
        self._events.extend(self._when_asked)

    def forget(self) -> None:
        """Nothing is open here."""

    def next_event(self, timeout_s: float) -> Event | None:
        return self._events.popleft() if self._events else None


def carrier(server: ScriptedServer, messages: NoMessages, **patience: float) -> StreamCarrier:
    scripted: Any = server
    return StreamCarrier(messages, scripted, lambda invites: None, Patience(**patience))


def test_a_session_that_is_lost_as_a_question_begins_is_waited_for() -> None:
    """Its loss is known only afterwards: the question is the session's all the same."""
    answer = Answer(SITE, 3)
    server = ScriptedServer(
        [Opened(SITE, again=False)], [Lost(SITE), Opened(SITE, again=True), answer]
    )
    messages = NoMessages()
    assert list(carrier(server, messages).ask(question(sites="a"), 5.0)) == [answer]
    assert (server.asked, messages.sent, server.invited) == ([3], [], 1)


def test_a_site_outside_the_roster_is_asked_by_message_and_never_invited() -> None:
    server, messages = ScriptedServer([], []), NoMessages()
    found = list(carrier(server, messages, open_s=0.0).ask(question(sites="z"), 5.0))
    assert [answer.failure for answer in found] == ["site_unknown"]
    assert (server.asked, server.invited) == ([], 0)


def test_a_session_that_was_lost_long_ago_is_not_waited_for() -> None:
    server = ScriptedServer([Opened(SITE, again=False), Lost(SITE)], [])
    messages = NoMessages()
    found = list(carrier(server, messages, lost_s=0.0, open_s=0.0).ask(question(sites="a"), 5.0))
    assert [answer.failure for answer in found] == ["site_unknown"]
    assert (server.asked, messages.sent) == ([], [(3, (SITE,))])
