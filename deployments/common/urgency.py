"""How soon the result of a call is needed. Sent with the calls of LipSync and Enhance."""

from __future__ import annotations

from dataclasses import dataclass, replace

FILE_LATE_S = 2.0  # a call of the background is renewed when it is later than this: nearly all players buffer less


@dataclass(frozen=True, slots=True)
class Urgency:
    """When a call is due, as seconds from now: hosts need no common clock.

    slack_s: until the result is due. renew_s: the slack of a call that has missed its time, the playing time of its
    frames. So a job that is always late asks for no more than its frames take, and cannot delay those that are in time.
    background: nobody watches it, so calls that somebody watches come first. It is renewed only when it is FILE_LATE_S
    late: a client may play it while it is made, and the one whose player is nearly empty comes first.
    """

    slack_s: float = 0.0
    renew_s: float = 0.32
    background: bool = True

    def after(self, spent_s: float) -> Urgency:
        """The urgency of the next call, when an earlier one has taken some of the time."""
        return replace(self, slack_s=self.slack_s - spent_s)

    def left_s(self, elapsed_s: float) -> float:
        """The slack `elapsed_s` after the call arrived; renewed if it has been missed."""
        left_s = self.slack_s - elapsed_s
        return left_s if left_s > (-FILE_LATE_S if self.background else 0) else self.renew_s


NO_HURRY = Urgency()  # of a call that says nothing else
