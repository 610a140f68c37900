package layers

import (
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// Race: 1 a flusher takes a batch off the queue, and orders its requests by slot; 2 the batch's budget ends meanwhile, and every request gets
// its error. A request that moved while 2 went through them would keep neither error nor answer: it would look like a key that is not
// there, to its callers and to all who join it later, since nobody would take it off the list of what is under way.
func TestBatchIsOrderedWhileItsBudgetEnds(t *testing.T) {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer func() { _ = cluster.Close() }()
	r := openTier(t, cluster, RedisOptions{})
	m := newMaster(r, "m")
	for range 20 {
		g := &m.gets
		g.mu.Lock()
		for i := range maxBatch {
			m.queueLocked(strconv.Itoa(i), Mark{}, uint16(i*7919%16384)) //nolint:gosec // small
		}
		b := g.waiting[0]
		g.waiting, g.flying, g.queued = nil, []*batch{b}, 0
		g.mu.Unlock()
		begin, sorted := make(chan struct{}), make(chan answer)
		go func() {
			var a answer
			<-begin
			a.split(b, true)
			sorted <- a
		}()
		close(begin)
		require.True(t, b.settle(nil, ErrTimeout))
		a := <-sorted
		require.Empty(t, g.under)
		seen := 0
		for _, p := range a.parts {
			for _, q := range a.reqs[p.from:p.to] {
				require.ErrorIs(t, q.err, ErrTimeout)
				require.Equal(t, a.reqs[p.from].slot, q.slot)
				seen++
			}
		}
		require.Equal(t, maxBatch, seen)
	}
}
