package layers

import (
	"crypto/rand"
	"encoding/base64"
	"strconv"
	"time"
)

// Events are the ears of one cache: what the bus tells it. Any of them may be nil.
//
// They are called one at a time, never two of the same cache at once. They must not block and must not open or close
// anything of the Redis they belong to: closing waits for the one under way. None runs after the space is closed.
type Events struct {
	// Invalidated is told the string form of a key that another process invalidated.
	Invalidated func(id string)
	// Announced is told the string form of a key that another process announced: all that Invalidated means, and the filter must let
	// the key pass. Where it is nil Invalidated is called instead.
	Announced func(id string)
	// Cleared is called when the generation has moved up: everything kept so far is of an older one. Whoever learns of it first calls
	// it: an event, a heartbeat, a Get that met a newer value.
	Cleared func()
	// Begun is called when this process has learned of a generation that it did not know, of whatever age, with the moment at which it
	// began: nothing that may be answered was stored before. A namespace that is used for the first time begins, and one that was cleared.
	Begun func(since time.Time)
	// Filter is called when another process has stored a new filter snapshot.
	Filter func()
	// Deaf is called when events may have been lost, or may be lost from now on: nothing that memory keeps is trusted until Hear. It is
	// called once by the opening itself, then only after a Hear.
	Deaf func()
	// Hear is called when events arrive again, for certain: the subscription is confirmed and this process's own probe has come back.
	// What was put into memory before this call stays untrusted for good, since it may have been invalidated meanwhile.
	Hear func()
	// Tick is called each heartbeat (1 s) in which at least one master answered, after the generation was asked for.
	Tick func()
	// Lost is called when Redis may have lost what it had acknowledged, of any key: after a failover, a restart, a flush; back is how long
	// before that its data ends, as far as can be told; 0: that cannot. One failover may be told more than once. Deaf and Hear follow if
	// events are heard: what Lost makes pending is pending before a mark is good again.
	Lost func(back time.Duration)
	// Steady is called each heartbeat in which every master answered, none of them as another server than before: what was acknowledged
	// before is not lost so far.
	Steady func()
	// Breaker is told the state of the breakers around the masters, of the one that is furthest from closed: "open" while some
	// master is unreachable or none of its keys is read there yet, "half-open" while reads come back to it, "closed". It is called when that
	// has changed; of changes that follow each other at once the last one is told.
	Breaker func(state string)
	// Error is told what failed: once a change of state, not once a repetition, unless a heartbeat's own command failed.
	Error func(op string, err error)
}

// The kinds of events. Every event but ready and lost ones is numbered, per origin and channel, so that a listener can tell that one is missing.
const (
	eventInvalidated byte = 'i' // payload: the key's string form
	eventAnnounced   byte = 'n' // payload: the key's string form
	eventReady       byte = 'r' // payload: the key's string form; someone who was told "held" waits for it
	eventCleared     byte = 'c' // payload: the generation, decimal
	eventFilter      byte = 'f' // no payload
	eventLost        byte = 'l' // no payload; not numbered: the script that finds the generation lost sends it
	eventBeat        byte = 'b' // no payload; its number is that of the origin's newest event, not one of its own
)

// originBytes is the length of an origin: 12 random bytes in base64url.
const originBytes = 16

// maxEventPayload is the longest payload that an event may have: a key's string form is at most 8 KiB.
const maxEventPayload = 8 << 10

// event is one message of a name's channel.
type event struct {
	kind    byte
	origin  string // of the layers.Redis that sent it
	number  uint64 // per origin and channel, from 1 on; 0: not numbered
	payload string
}

// newOrigin returns the name under which a Redis speaks on the bus: random, so that no two of them ever share one.
func newOrigin() string {
	var b [originBytes * 3 / 4]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program first
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// String returns the bytes that are published.
func (e event) String() string {
	b := make([]byte, 0, 1+len(e.origin)+20+1+len(e.payload))
	b = append(b, e.kind)
	b = append(b, e.origin...)
	b = strconv.AppendUint(b, e.number, 10)
	b = append(b, '|')
	return string(append(b, e.payload...))
}

// parseEvent reads what was published. It reports false for anything that String would not have written; the kind is not looked at.
func parseEvent(s string) (event, bool) {
	if len(s) < 1+originBytes+2 {
		return event{}, false
	}
	e := event{kind: s[0], origin: s[1 : 1+originBytes]}
	for i := range len(e.origin) {
		if !base64url(e.origin[i]) {
			return event{}, false
		}
	}
	number, rest, ok := cutNumber(s[1+originBytes:])
	if !ok || len(rest) > maxEventPayload {
		return event{}, false
	}
	e.number, e.payload = number, rest
	return e, true
}

// cutNumber splits "12|rest" into its two parts. The number has no sign and no leading zeros.
func cutNumber(s string) (number uint64, rest string, ok bool) {
	const longest = 20 // digits of the largest uint64
	end := 0
	for end < len(s) && end <= longest && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == 0 || end == len(s) || s[end] != '|' || (s[0] == '0' && end > 1) {
		return 0, "", false
	}
	number, err := strconv.ParseUint(s[:end], 10, 64)
	return number, s[end+1:], err == nil
}

func base64url(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}
