package bench

import (
	"context"
	"runtime"
	"sync"

	"github.com/redis/go-redis/v9"
)

// batcher is the yardstick of the shared tier: the least that lets goroutines share round trips. Callers put their key into the open
// batch; up to four flushers take the whole batch and send one MGET. It shares no replies, checks nothing, knows no time and no
// cluster, and its callers cannot leave before their batch is answered: a cache does all of that on top.
type batcher struct {
	rdb *redis.Client

	mu       sync.Mutex
	open     *batch // nil: nobody waits
	flushers int
}

type batch struct {
	keys   []any // "mget", then the keys
	values []any
	err    error
	done   chan struct{} // closed when values and err stand
}

// maxFlushers and secondFlusher: larger batches beat more flushers until about a hundred callers wait; values of the spike that this
// yardstick was first measured with.
const (
	maxFlushers   = 4
	secondFlusher = 24
)

// get returns the value of key; "" where there is none.
func (b *batcher) get(key string) (string, error) {
	b.mu.Lock()
	if b.open == nil {
		b.open = &batch{keys: append(make([]any, 0, 64), "mget"), done: make(chan struct{})}
	}
	mine := b.open
	at := len(mine.keys) - 1
	mine.keys = append(mine.keys, key)
	if b.flushers == 0 || b.flushers < maxFlushers && at+1 >= secondFlusher {
		b.flushers++
		go b.flush()
	}
	b.mu.Unlock()

	<-mine.done
	if mine.err != nil {
		return "", mine.err
	}
	v, _ := mine.values[at].(string)
	return v, nil
}

// flush sends open batches until none is left.
func (b *batcher) flush() {
	for {
		runtime.Gosched() // callers that are ready to run get into this batch
		b.mu.Lock()
		next := b.open
		b.open = nil
		if next == nil {
			b.flushers--
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		cmd := redis.NewSliceCmd(context.Background(), next.keys...)
		_ = b.rdb.Process(context.Background(), cmd) // its error is the command's
		next.values, next.err = cmd.Result()
		close(next.done)
	}
}
