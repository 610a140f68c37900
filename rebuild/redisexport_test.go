package rebuild

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/borrowed"
)

// BreakLockScript puts instead in the place of a line of the locks' scripts until the test ends. The script "head" is what all begin with.
func BreakLockScript(t *testing.T, script, line, instead string) {
	t.Helper()
	scripts := map[string]**borrowed.Script{
		"acquire": &lockAcquire, "renew": &lockRenew, "release": &lockRelease, "resize": &lockResize, "downgrade": &lockDowngrade,
	}
	found := false
	for name, s := range scripts {
		if script != name && script != "head" {
			continue
		}
		whole := *s
		require.Equal(t, 1, strings.Count(whole.Text, line), "%s has not exactly one line %q", name, line)
		*s = borrowed.NewScript(name, strings.Replace(whole.Text, line, instead, 1))
		t.Cleanup(func() { *s = whole })
		found = true
	}
	require.True(t, found, "no script %q", script)
}

// WatchSilence is how long a watch hears nothing before it takes itself for deaf.
const WatchSilence = watchSilence

// LockKey is the key of a name in Redis.
func (b *RedisBackend) LockKey(name string) string { return b.key(name) }

// Sending returns how many goroutines send for b, how many calls wait for them, and how many lanes there are.
func (b *RedisBackend) Sending() (senders, waiting, lanes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		senders += l.senders
		waiting += len(l.waiting)
	}
	return senders, waiting, len(b.lanes)
}
