package layers

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sampleEnvelope() envelope {
	return envelope{
		flags: flagVersioned, codec: 1, schema: 513, generation: 1_700_000_000_000_001, stored: 1_700_000_000_000, soft: 1_700_000_001_000,
		hard: 1_700_000_002_000, version: math.MaxUint64, cost: 1500 * time.Microsecond, token: "0123456789abcdef", payload: "payload",
	}
}

// Property: the layout is the one that is documented, byte by byte: other programs and other versions read it.
func TestEnvelopeLayout(t *testing.T) {
	e := sampleEnvelope()
	e.flags |= flagLongKey
	e.id = "a key"
	require.Equal(t, "tc\x01\x0c\x01\x02\x01\x00"+
		"\x00\x06\x0a\x24\x18\x1e\x40\x01"+
		"\x00\x00\x01\x8b\xcf\xe5\x68\x00"+
		"\x00\x00\x01\x8b\xcf\xe5\x6b\xe8"+
		"\x00\x00\x01\x8b\xcf\xe5\x6f\xd0"+
		"\xff\xff\xff\xff\xff\xff\xff\xff"+
		"\x00\x00\x05\xdc"+
		"0123456789abcdef"+
		"\x00\x05a key"+
		"payload", e.String())
}

// Property: what the scripts write is what the reader takes apart.
func TestEnvelopeRoundTrip(t *testing.T) {
	e := sampleEnvelope()
	got, err := parseEnvelope(e.String())
	require.NoError(t, err)
	require.Equal(t, e, got)
}

// Property: a cost that the field cannot hold is written as the greatest it can, a negative one as none.
func TestTailBoundsTheCost(t *testing.T) {
	require.Equal(t, strings.Repeat("\xff", 4), tail(0, 1000*time.Hour)[8:])
	require.Equal(t, strings.Repeat("\x00", 4), tail(0, -time.Hour)[8:])
}

// Property: truncated, foreign and contradictory data is an error, never a value.
func TestUnreadableEnvelopesAreForeign(t *testing.T) {
	whole := sampleEnvelope()
	raw := whole.String()
	for n := range headerLength {
		_, err := parseEnvelope(raw[:n])
		require.ErrorIs(t, err, errForeign, "cut to %d bytes", n)
	}
	for name, spoil := range map[string]func(*envelope){
		"unknown flag":        func(e *envelope) { e.flags |= 32 },
		"compressed":          func(e *envelope) { e.flags |= flagCompressed },
		"stored at zero":      func(e *envelope) { e.stored = 0 },
		"stored before zero":  func(e *envelope) { e.stored = -1 },
		"stored in an age":    func(e *envelope) { e.stored, e.soft, e.hard = exact, exact, exact },
		"soft before stored":  func(e *envelope) { e.soft = e.stored - 1 },
		"hard before soft":    func(e *envelope) { e.hard = e.soft - 1 },
		"hard end in an age":  func(e *envelope) { e.hard = math.MaxInt64 },
		"key flag, no length": func(e *envelope) { e.flags |= flagLongKey; e.payload = "" },
	} {
		e := sampleEnvelope()
		spoil(&e)
		bytes := e.String()
		if name == "key flag, no length" {
			bytes = bytes[:headerLength+1]
		}
		_, err := parseEnvelope(bytes)
		require.ErrorIs(t, err, errForeign, name)
	}
	e := sampleEnvelope()
	e.flags, e.id = e.flags|flagLongKey, "longer than what follows"
	_, err := parseEnvelope(e.String()[:headerLength+2+5])
	require.ErrorIs(t, err, errForeign)
	for i, b := range map[int]byte{0: 'x', 1: 'x', 2: 9} {
		bad := []byte(raw)
		bad[i] = b
		_, err := parseEnvelope(string(bad))
		require.ErrorIs(t, err, errForeign, "byte %d", i)
	}
}

// Property: an envelope belongs to one key: a long key's hash is not enough.
func TestAnEnvelopeIsOfOneKey(t *testing.T) {
	one, other := strings.Repeat("a", longKey+1), strings.Repeat("b", longKey+1)
	e := sampleEnvelope()
	require.True(t, e.of("short"))
	require.False(t, e.of(one), "no full key")
	e.flags, e.id = e.flags|flagLongKey, one
	require.True(t, e.of(one))
	require.False(t, e.of(other))
	require.False(t, e.of("short"))
	marker := envelope{flags: flagMarker}
	require.True(t, marker.of(one), "a script that leaves a marker does not know the full key")
}

// Property: whatever Redis holds, reading it neither panics nor claims more than was there; what is read can be written back as it was.
func FuzzParseEnvelope(f *testing.F) {
	e := sampleEnvelope()
	f.Add(e.String())
	e.flags, e.id = e.flags|flagLongKey, "a key"
	f.Add(e.String())
	f.Add("")
	f.Add("tc\x01" + strings.Repeat("\xff", 80))
	s := NewShared[map[string]any](&Space{}, JSON, 513, Limits{EncodedBytes: 64})
	f.Fuzz(func(t *testing.T, raw string) {
		sent := time.Unix(1_700_000_000, 0)
		var d Reading[map[string]any]
		s.decode(&d, "short", raw, sent, 1_700_000_000_000)
		if d.Kind == Value && (d.Size > 64 || d.Soft.After(d.Hard) || d.Hard.After(sent.Add(2*farthest)) || d.Born.After(sent)) {
			t.Fatalf("decoded %+v", d)
		}
		e, err := parseEnvelope(raw)
		if err != nil {
			return
		}
		bytes := []byte(raw)
		bytes[7] = 0 // reserved: not read
		if got := e.String(); got != string(bytes) {
			t.Fatalf("%q is written back as %q", raw, got)
		}
	})
}
