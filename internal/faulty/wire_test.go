package faulty

import (
	"context"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// dialled is a client of the shared server whose connections f may strike.
func dialled(t *testing.T, f *Faults, set ...func(*redis.Options)) *redis.Client {
	t.Helper()
	return redistest.Shared(t).Client(t, append(set, func(o *redis.Options) { o.Dialer = f.Dialer(nil) })...)
}

// A lost answer is of a command that was carried out, and the client's own repeat of it shows: it is carried out twice. What must not
// be repeated is not.
//
// Broken by: answer without c.cut: nothing is lost.
func TestALostAnswerIsBelowTheClientsRepeats(t *testing.T) {
	f := New(1)
	defer f.Close()
	rdb := dialled(t, f)
	repeated, single := redistest.Name(t), redistest.Name(t)
	f.Set(Rule{Kind: Reset, Names: []string{Answer}, About: repeated, Limit: 1}, Rule{Kind: Reset, Names: []string{Answer}, About: single, Limit: 1})
	require.EqualValues(t, 2, rdb.Incr(t.Context(), repeated).Val(), "the answer of the repeat")
	cmd := redis.NewIntCmd(t.Context(), "incr", single)
	require.ErrorIs(t, rdb.Process(t.Context(), &once{cmd}), syscall.ECONNRESET)
	require.Equal(t, "1", rdb.Get(t.Context(), single).Val())
	require.Equal(t, 2, f.Count(Reset))
}

// An answer that never comes ends the command with the client's own time-out, and it was carried out.
//
// Broken by: answer without c.mute.
func TestAnAnswerThatNeverComes(t *testing.T) {
	key := redistest.Name(t)
	f := New(1, Rule{Kind: Timeout, Names: []string{Answer}, About: key, Limit: 1})
	defer f.Close()
	rdb := dialled(t, f, func(o *redis.Options) { o.MaxRetries, o.ReadTimeout = -1, 50*time.Millisecond })
	var timeout net.Error
	require.ErrorAs(t, rdb.Incr(t.Context(), key).Err(), &timeout)
	require.True(t, timeout.Timeout())
	patient := redistest.Shared(t).Client(t)
	require.Equal(t, "1", patient.Get(t.Context(), key).Val())
}

// A refused connection is refused, whoever dials.
//
// Broken by: Dialer without its strike.
func TestDialIsRefused(t *testing.T) {
	f := New(1, Rule{Kind: Refused, Names: []string{Dial}})
	defer f.Close()
	rdb := dialled(t, f, func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 })
	require.ErrorIs(t, rdb.Ping(t.Context()).Err(), syscall.ECONNREFUSED)
	f.Set()
	require.NoError(t, rdb.Ping(t.Context()).Err())
}

// Messages are lost, doubled and overtaken on their way, in both versions of the protocol, and a connection is cut in front of one.
//
// Broken by: take without any one of its cases; isMessage without '>' or without '*'.
func TestMessages(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		for name, c := range map[string]struct {
			kind Kind
			want []string
		}{
			"dropped":    {Dropped, []string{"0", "1", "3", "4"}},
			"duplicated": {Duplicated, []string{"0", "1", "2", "2", "3", "4"}},
			"reordered":  {Reordered, []string{"0", "1", "3", "2", "4"}},
			"reset":      {Reset, []string{"0", "1"}},
		} {
			t.Run(name+" "+strconv.Itoa(protocol), func(t *testing.T) {
				channel := redistest.Name(t)
				f := New(1, Rule{Kind: c.kind, Names: []string{Message}, About: channel, After: 2, Limit: 1})
				defer f.Close()
				rdb := dialled(t, f, func(o *redis.Options) { o.Protocol = protocol })
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				ps := rdb.Subscribe(ctx, channel)
				defer ps.Close() //nolint:errcheck // it may be broken
				_, err := ps.Receive(ctx)
				require.NoError(t, err, "the subscription")
				for i := range 5 {
					require.NoError(t, rdb.Publish(ctx, channel, i).Err())
				}
				var got []string
				for range c.want {
					m, err := ps.ReceiveMessage(ctx)
					require.NoError(t, err, "after %v", got)
					got = append(got, m.Payload)
				}
				require.Equal(t, c.want, got)
				if c.kind == Reset {
					_, err = ps.ReceiveTimeout(ctx, 10*time.Second)
					require.ErrorIs(t, err, ErrInjected)
				}
			})
		}
	}
}

// Values are taken apart where they end, whatever they are made of, and one that is not whole yet is waited for.
//
// Broken by: valueLength without any one of its cases.
func TestValueLength(t *testing.T) {
	for _, whole := range []string{
		"+OK\r\n", "-ERR no\r\n", ":12\r\n", "_\r\n", "#t\r\n", ",1.5\r\n", "(123\r\n", "$3\r\nabc\r\n", "$0\r\n\r\n", "$-1\r\n", "*-1\r\n", "*0\r\n",
		"!5\r\nERR x\r\n", "=7\r\ntxt:a\r\n\r\n", "*2\r\n$1\r\na\r\n:1\r\n", "~1\r\n+a\r\n", "%1\r\n+a\r\n+b\r\n",
		"|1\r\n+a\r\n+b\r\n:1\r\n", ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n\r\n\r\n", "*2\r\n*1\r\n+a\r\n*2\r\n$-1\r\n_\r\n",
	} {
		require.Equal(t, len(whole), valueLength([]byte(whole+"+next\r\n")), "%q", whole)
		for n := range len(whole) {
			require.Zero(t, valueLength([]byte(whole[:n])), "%q of %q", whole[:n], whole)
		}
	}
}
