package layers

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is published is read back as it was, whatever the key's string form holds.
func TestEventIsReadBackAsItWasPublished(t *testing.T) {
	origin := newOrigin()
	for _, e := range []event{
		{eventInvalidated, origin, 1, "user:7"},
		{eventAnnounced, origin, math.MaxUint64, "a|b|\x00\xff{}"},
		{eventReady, origin, 0, ""},
		{eventCleared, origin, 12, "1700000000000000"},
		{eventBeat, origin, 0, ""},
	} {
		got, ok := parseEvent(e.String())
		require.True(t, ok, "%q", e.String())
		require.Equal(t, e, got)
	}
}

// What String would not have written is refused, not guessed at.
func TestUnreadableEventIsRefused(t *testing.T) {
	const origin = "AAAAAAAAAAAAAAAA"
	for _, s := range []string{
		"", "i", "i" + origin, "i" + origin + "1", "i" + origin + "|x", "i" + origin + "-1|x", "i" + origin + "+1|x", "i" + origin + "01|x",
		"i" + origin + " 1|x", "i" + origin + "18446744073709551616|x", "i" + origin + "999999999999999999999|x",
		"i" + strings.Repeat(":", originBytes) + "1|x",
		"i" + origin + "1|" + strings.Repeat("x", maxEventPayload+1),
	} {
		_, ok := parseEvent(s)
		require.False(t, ok, "%q", s)
	}
}

// Origins are random and of the length that the parser expects.
func TestOriginsDiffer(t *testing.T) {
	a, b := newOrigin(), newOrigin()
	require.NotEqual(t, a, b)
	require.Len(t, a, originBytes)
}

// Any bytes are either refused or are exactly what String writes of the event that was read.
func FuzzParseEvent(f *testing.F) {
	f.Add("iAAAAAAAAAAAAAAAA12|user:7")
	f.Add("rAAAAAAAAAAAAAAAA0|")
	f.Add("bAAAAAAAAAAAAAAAA18446744073709551615|")
	f.Add("xAAAAAAAAAAAAAAAA1")
	f.Fuzz(func(t *testing.T, s string) {
		e, ok := parseEvent(s)
		if ok && e.String() != s {
			t.Errorf("parseEvent(%q) = %+v, which is written %q", s, e, e.String())
		}
		if !ok && e != (event{}) {
			t.Errorf("parseEvent(%q) refused, but gave %+v", s, e)
		}
	})
}
