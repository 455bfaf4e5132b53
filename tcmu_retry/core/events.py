"""Events a person wants to know, by stable codes; `tcmu-retry explain` prints these texts."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

OUTAGE_BEGAN = "TR-001"
DOWN = "TR-002"
TIMED_OUT = "TR-003"
RECOVERED = "TR-004"
STOPPED = "TR-005"
RESUMED = "TR-006"
HELD = "TR-007"
POLICY_CHANGED = "TR-008"
SHED = "TR-009"
IGNORED = "TR-010"
GAVE_UP = "TR-011"
HANGS = "TR-012"
HANGS_NO_MORE = "TR-013"
LOGIN_WAITS = "TR-020"
STORAGE_REFUSED = "TR-021"
STORAGE_ACCEPTED = "TR-022"
PROMISES_TOO_MUCH = "TR-023"
WINDOW_CLOSED = "TR-024"
LUN_REFUSED = "TR-030"
CHANGE_REFUSED = "TR-031"
ADOPTED = "TR-040"
NOT_ADOPTED = "TR-041"
RING_BROKEN = "TR-042"
RING_MENDED = "TR-043"
HANDED_OVER = "TR-044"


@dataclass(frozen=True, slots=True)
class Meaning:
    """summary: a line, with the event's fields in braces; explain: cause, effect and what to do."""

    summary: str
    explain: str


MEANINGS = {
    OUTAGE_BEGAN: Meaning(
        "an outage began ({errno})",
        "A command failed and is held instead of being reported. It is tried again by its policy; the initiator waits.",
    ),
    DOWN: Meaning(
        "the storage is taken to be away ({errno})",
        "The path or the storage is lost, or three different places failed in a row. New commands wait untried while"
        " one probe goes out per interval. Look at the storage; `tcmu-retry queue retry LUN` probes at once.",
    ),
    TIMED_OUT: Meaning(
        "the outage has lasted its retry_timeout ({seconds} s); now: {fallback}",
        "Held commands get the fallback, and new ones as soon as they fail. Probing goes on; the first success ends"
        " it.",
    ),
    RECOVERED: Meaning(
        "the storage is back after {seconds} s; up to {held_most} commands were held",
        "A command succeeded and nothing is held any more. For `stopped` seconds of it nothing was tried, by policy or"
        " a person.",
    ),
    STOPPED: Meaning(
        "stopped by its fallback {fallback}",
        "Nothing is tried in this direction and its clocks stand still until `tcmu-retry device resume LUN`.",
    ),
    RESUMED: Meaning("resumed", "A person ended a hold or a stop; what was held is tried again."),
    HELD: Meaning(
        "held by a person: {reason}",
        "Commands wait untried and their clocks stand still until `tcmu-retry device resume LUN`.",
    ),
    POLICY_CHANGED: Meaning(
        "its policy was changed: {changes}", "The new policy holds for held commands too, from their beginnings."
    ),
    SHED: Meaning(
        "over budget with {held} commands held: BUSY",
        "More commands were to be held than the budgets allow; the rest is answered BUSY. Linux gives up on BUSY after"
        " 180 s.",
    ),
    IGNORED: Meaning(
        "commands are answered GOOD without effect",
        "The fallback is `ignore`: writes are dropped and reads return zeros while this lasts. Data is being lost.",
    ),
    GAVE_UP: Meaning(
        "the outage ended with its last held command after {seconds} s; whether the storage is back is not known",
        "Every held command was answered: by its fallback, by task management, or by a person. No command has succeeded"
        " since the last failure.",
    ),
    HANGS: Meaning(
        "{count} I/O neither failed nor returned within {seconds} s",
        "The storage hangs: there is no error to act on, so that policy cannot help. Aborts are answered all the same;"
        " what was aborted keeps its place until it returns. `tcmu-retry queue list LUN` shows these commands as"
        " waiting for io. Look for time-outs of the storage itself (NFS, iSCSI, multipath).",
    ),
    HANGS_NO_MORE: Meaning("its I/O returns again after {seconds} s", "No I/O is out for longer than io_warn_after."),
    LOGIN_WAITS: Meaning(
        "a login at {portal} waits for commands of a dead connection; {released} answered BUSY",
        "The target cannot finish closing a connection while its commands are held, and every login to the portal waits"
        " with it. Which commands they are cannot be known, so everything held behind the portal was answered BUSY;"
        " living initiators send theirs again.",
    ),
    STORAGE_REFUSED: Meaning(
        "its storage is refused: {reason}",
        "What is found under the LUN's path is not the storage it had. Nothing is read from or written to it. Bring the"
        " right one back, or unexport the LUN.",
    ),
    STORAGE_ACCEPTED: Meaning("its storage is accepted again", "Under the LUN's path is the storage it had before."),
    PROMISES_TOO_MUCH: Meaning(
        "policy promises more than the chain holds: {reason}",
        "Said when a LUN comes and when its policy is changed. The initiator gives up before retry_timeout is over, so"
        " that the fallback never reaches it. `tcmu-retry doctor LUN` shows the whole chain of time-outs;"
        " docs/initiators.md says what each kind of initiator tolerates and how to tune it.",
    ),
    WINDOW_CLOSED: Meaning(
        "aborted commands had closed the command window of {initiator}; its session was ended, it logs in again",
        "Each aborted command takes a place of its session's window until the next login. With none left the initiator"
        " could send nothing more and would have waited for ever, storage or not. `tcmu-retry doctor LUN` shows what is"
        " left of each window; docs/initiators.md says more.",
    ),
    LUN_REFUSED: Meaning(
        "it cannot be made: {reason}",
        "The kernel announced a new LUN and was told no; whoever made it, targetcli for example, saw only a failure.",
    ),
    CHANGE_REFUSED: Meaning(
        "it is left as it is: {reason}",
        "The kernel announced another size, configuration string or write cache (`set attribute` in targetcli) and was"
        " told no; nothing was changed.",
    ),
    ADOPTED: Meaning(
        "{count} commands of a former daemon go on, {failed} of them held; the oldest is {seconds} s old;"
        " {aborted} were aborted meanwhile",
        "The daemon was killed or came anew, and its journal says what was open. Those commands are run again, or stay"
        " held with their age and attempts; initiators notice nothing.",
    ),
    NOT_ADOPTED: Meaning(
        "{count} commands of a former daemon are answered BUSY: {reason}",
        "What that daemon had open cannot be proved, so that nothing of it is run again. Initiators send theirs anew;"
        " Linux does so until 180 s after it first sent them.",
    ),
    RING_BROKEN: Meaning(
        "its ring is broken: {reason}",
        "The memory that kernel and daemon share for the LUN's commands makes no sense, or could not be worked on. The"
        " kernel answers BUSY until the daemon has emptied the ring and begun anew, which it does as soon as no I/O is"
        " out any more. If that is not told within seconds, `tcmu-retry device show LUN` says what is in the way. Linux"
        " gives up on BUSY after 180 s. Please report it: no storage can cause this.",
    ),
    RING_MENDED: Meaning(
        "its ring is in order again after {seconds} s; what was open was answered BUSY",
        "The ring was emptied by the kernel and the LUN is served on. Initiators send again what was answered BUSY.",
    ),
    HANDED_OVER: Meaning(
        "handed over to a new daemon, with {count} open commands, {failed} of them held; for {seconds} s nothing ran",
        "The daemon was restarted (`tcmu-retry upgrade`, `systemctl restart`) and left open what was open: that goes on"
        " in the next one, and initiators saw no more than this pause.",
    ),
}

# What ends what. A code that stands on neither side is a moment.
ENDS = {
    RECOVERED: (OUTAGE_BEGAN, DOWN, TIMED_OUT, SHED, IGNORED),
    GAVE_UP: (OUTAGE_BEGAN, DOWN, TIMED_OUT, SHED, IGNORED),
    RESUMED: (HELD, STOPPED),
    HANGS_NO_MORE: (HANGS,),
    STORAGE_ACCEPTED: (STORAGE_REFUSED,),
    RING_MENDED: (RING_BROKEN,),
}
BEGINS = frozenset(code for begun in ENDS.values() for code in begun)
GOOD_NEWS = frozenset((*ENDS, POLICY_CHANGED, HELD, HANDED_OVER))
BY_PERSONS = frozenset((HELD, RESUMED, POLICY_CHANGED))

_NAMESPACE = uuid.UUID("afc33dac-8c36-5249-8cc2-2b492d9940f0")


def edge(code: str) -> str:
    """ "begin", "end", or "moment"."""
    return "begin" if code in BEGINS else "end" if code in ENDS else "moment"


def message_id(code: str) -> str:
    """The journal's MESSAGE_ID of a code, 32 hexadecimal digits; the same in every version."""
    return uuid.uuid5(_NAMESPACE, code).hex
