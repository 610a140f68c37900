package layers

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

type (
	rawName  string
	rawBytes []byte
)

func roundTrip[V any](t *testing.T, c Codec, in V) (out V) {
	t.Helper()
	b, err := c.Encode([]byte("front"), &in)
	require.NoError(t, err)
	require.Equal(t, "front", string(b[:5]))
	require.NoError(t, c.Decode(b[5:], &out))
	var twin V
	require.NoError(t, decode(c, string(b[5:]), &twin))
	require.Equal(t, out, twin)
	return out
}

// Property: the raw codec carries strings and byte slices and types of their kinds, whatever bytes they hold, and nothing else.
func TestRawCodec(t *testing.T) {
	for _, s := range []string{"", "v", "\x00\xff{}"} {
		require.Equal(t, s, roundTrip(t, Raw, s))
		require.Equal(t, rawName(s), roundTrip(t, Raw, rawName(s)))
		require.Equal(t, []byte(s), roundTrip(t, Raw, []byte(s)))
		require.Equal(t, rawBytes(s), roundTrip(t, Raw, rawBytes(s)))
	}
	n, words := 1, []string{"a"}
	for _, v := range []any{&n, &words, "no pointer", nil} {
		_, err := Raw.Encode(nil, v)
		require.Error(t, err)
		require.Error(t, Raw.Decode(nil, v))
	}
}

// Property: a decoded byte slice is the caller's own: changing it changes nobody else's.
func TestRawDecodesACopy(t *testing.T) {
	raw := "value"
	var one, two []byte
	require.NoError(t, decode(Raw, raw, &one))
	require.NoError(t, decode(Raw, raw, &two))
	one[0] = 'X'
	require.Equal(t, "value", raw)
	require.Equal(t, "value", string(two))
}

// Property: JSON carries what encoding/json does, a nil pointer included; trailing data is an error.
func TestJSONCodec(t *testing.T) {
	type row struct{ Name string }
	require.Equal(t, row{"x"}, roundTrip(t, JSON, row{"x"}))
	require.Nil(t, roundTrip[*row](t, JSON, nil))
	var r row
	require.Error(t, JSON.Decode([]byte(`{} {}`), &r))
	ch := make(chan int)
	_, err := JSON.Encode(nil, &ch)
	require.Error(t, err)
}

type panicking struct{ Codec }

func (panicking) Encode([]byte, any) ([]byte, error) { panic(errors.New("encode")) }
func (panicking) Decode([]byte, any) error           { panic(errors.New("decode")) }

// Property: a codec that panics harms only the value it was given.
func TestAPanicOfACodecIsAnError(t *testing.T) {
	s := "v"
	_, err := encode(panicking{JSON}, nil, &s)
	require.ErrorContains(t, err, "encode")
	require.ErrorContains(t, decode(panicking{JSON}, "v", &s), "decode")
	_, err = NewShared[string](nil, panicking{JSON}, 0, Limits{}).Encode(Lease{}, Entry[string]{}, Lives{})
	require.ErrorIs(t, err, ErrEncode)
}

// Property: tokens are of one form, and no two are equal.
func TestTokens(t *testing.T) {
	seen := map[Token]bool{}
	for range 1000 {
		token := NewToken()
		require.True(t, token.Valid(), "%q", token)
		require.False(t, seen[token])
		seen[token] = true
	}
	for _, bad := range []Token{"", "short", "0123456789abcde|", "0123456789abcdef0", "0123456789abcde\x00"} {
		require.False(t, bad.Valid(), "%q", bad)
	}
}
