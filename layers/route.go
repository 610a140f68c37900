package layers

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// The list of masters is asked for anew when it is older than this, or one of them is unreachable, and a heartbeat wants it; chosen;
	// not tuned.
	listAge = 5 * time.Second
	// How long one asking for it may take, and how long after a failure nobody asks again; both chosen; not tuned.
	listTimeout = 2 * time.Second
	listPause   = time.Second
)

// masters is what is known of a cluster's masters.
type masters struct {
	byClient atomic.Pointer[map[*redis.Client]*master] // copied on write; a master that serves no slot any more leaves it at the next listing
	ready    atomic.Bool                               // the client knows the cluster: routing never waits for the network any more

	mu      sync.Mutex
	byAddr  map[string]*master
	running chan struct{} // closed when the listing that is under way has ended; nil: none is
	since   time.Time     // when it began
	ended   time.Time     // when the last one ended
	failed  bool          // the last one failed
}

// route returns the master that holds the key, as far as the client knows, and its slot (0 outside of a cluster). It waits for
// the network only while the cluster is not known yet, at most for ctx and a read's budget.
func (r *Redis) route(ctx context.Context, key string) (*master, uint16, error) {
	switch {
	case r.single != nil:
		return r.single, 0, nil
	case r.cluster == nil:
		return r.any, 0, nil
	}
	if !r.masters.ready.Load() {
		if err := r.learn(ctx); err != nil {
			return nil, 0, err
		}
	}
	c, err := r.cluster.MasterForKey(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	return r.masterOf(c), slotOf(key), nil
}

// standing returns the phase of key's master, and the master; nil with a phase of which nothing is known. It never waits.
func (r *Redis) standing(key string) (*master, phase) {
	if r.cluster != nil && !r.masters.ready.Load() {
		r.masters.mu.Lock()
		defer r.masters.mu.Unlock()
		if r.masters.failed {
			return nil, away
		}
		return nil, whole
	}
	m, _, err := r.route(context.Background(), key)
	if err != nil {
		return nil, away
	}
	return m, m.phase.Load()
}

// reachable reports whether key's master is not known to be unreachable. It never waits.
func (r *Redis) reachable(key string) bool {
	_, p := r.standing(key)
	return p != away
}

// masterOf returns the master whose node client c is.
func (r *Redis) masterOf(c *redis.Client) *master {
	if all := r.masters.byClient.Load(); all != nil {
		if m := (*all)[c]; m != nil {
			return m
		}
	}
	r.masters.mu.Lock()
	defer r.masters.mu.Unlock()
	return r.masterOfLocked(c)
}

func (r *Redis) masterOfLocked(c *redis.Client) *master {
	t := &r.masters
	addr := c.Options().Addr
	m := t.byAddr[addr]
	if m == nil {
		if t.byAddr == nil {
			t.byAddr = make(map[string]*master)
		}
		m = newMaster(r, addr)
		t.byAddr[addr] = m
	}
	if n := m.node.Load(); n == nil || n.client != c {
		m.setNode(c) // the client forgot the node and made it again
	}
	all := make(map[*redis.Client]*master)
	if old := t.byClient.Load(); old != nil {
		maps.Copy(all, *old)
	}
	all[c] = m
	t.byClient.Store(&all)
	return m
}

// known returns every master there is an object of.
func (r *Redis) known() []*master {
	var all []*master
	if r.single != nil {
		all = append(all, r.single)
	}
	if r.any != nil {
		all = append(all, r.any)
	}
	r.masters.mu.Lock()
	defer r.masters.mu.Unlock()
	for _, m := range r.masters.byAddr {
		all = append(all, m)
	}
	return all
}

// eachMaster runs f for every master at the same time and returns when all have returned. In a cluster the list is at most a few
// seconds old, new while one of them is unreachable, or as old as the last answer to the question for it.
func (r *Redis) eachMaster(ctx context.Context, f func(ctx context.Context, m *master)) {
	var list []*master
	switch {
	case r.single != nil:
		list = []*master{r.single}
	case r.cluster == nil:
		list = []*master{r.any}
	default:
		r.masters.mu.Lock()
		old := time.Since(r.masters.ended) > listAge || r.missesOneLocked()
		r.masters.mu.Unlock()
		if old {
			_ = r.learn(ctx) // an older list will do
		}
		r.masters.mu.Lock()
		for _, m := range r.masters.byAddr {
			list = append(list, m)
		}
		r.masters.mu.Unlock()
	}
	if len(list) == 1 {
		f(ctx, list[0])
		return
	}
	var all sync.WaitGroup
	for _, m := range list {
		all.Go(func() { f(ctx, m) })
	}
	all.Wait()
}

// missesOneLocked reports whether a master is unreachable: another may have taken its place. The caller holds the lock of masters.
func (r *Redis) missesOneLocked() bool {
	for _, m := range r.masters.byAddr {
		if m.unreachable() {
			return true
		}
	}
	return false
}

// learn waits until the client knows the cluster anew, for at most ctx and a read's budget. One goroutine asks, however many wait;
// after a failure nobody waits, and nobody asks for a second.
func (r *Redis) learn(ctx context.Context) error {
	t := &r.masters
	t.mu.Lock()
	failed := t.failed
	if t.running == nil && (!failed || time.Since(t.ended) > listPause) {
		done := make(chan struct{})
		if !r.spawn(func() { r.list(done) }) {
			t.mu.Unlock()
			return errRedisClosed
		}
		t.running, t.since = done, time.Now()
	}
	running, left := t.running, r.readTimeout-time.Since(t.since)
	t.mu.Unlock()
	if running == nil || failed || left <= 0 {
		return ErrUnreachable
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-running:
	case <-timer.C:
		return ErrTimeout
	case <-ctx.Done():
		return endOf(ctx)
	}
	if !t.ready.Load() {
		return ErrUnreachable
	}
	return nil
}

// list asks the cluster for its masters and forgets those that are none any more. It lasts as long as the client's own time-outs
// let it: that is why nobody waits for it longer than a budget.
func (r *Redis) list(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	var mu sync.Mutex
	var clients []*redis.Client
	err := r.cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		clients = append(clients, c)
		return nil
	})
	t := &r.masters
	t.mu.Lock()
	was := t.failed
	t.failed = err != nil && !t.ready.Load()
	if err == nil {
		old := t.byAddr
		t.byAddr = make(map[string]*master, len(clients))
		for _, c := range clients {
			if m := old[c.Options().Addr]; m != nil {
				t.byAddr[m.id] = m
			}
		}
		t.byClient.Store(nil)
		for _, c := range clients {
			r.masterOfLocked(c)
		}
		t.ready.Store(true)
	}
	failed := t.failed
	t.running, t.ended = nil, time.Now()
	t.mu.Unlock()
	close(done)
	if failed && !was {
		r.log.Warn("tiercache: the cluster's masters are not known, going on without Redis", "error", err)
	}
}

// reload makes the client ask for the cluster's slots again, in the background: a slot moved or a master went.
func (r *Redis) reload() {
	if r.cluster != nil {
		r.cluster.ReloadState(context.Background())
	}
}

// slotOf is the hash slot of a key in a Redis Cluster: CRC16 (XMODEM) of what stands in the first braces, or of all of it, modulo 16384.
func slotOf(key string) uint16 {
	for i := range len(key) {
		if key[i] != '{' {
			continue
		}
		for j := i + 1; j < len(key); j++ {
			if key[j] == '}' {
				if j > i+1 {
					key = key[i+1 : j]
				}
				break
			}
		}
		break
	}
	var crc uint16
	for i := range len(key) {
		crc = crc<<8 ^ crc16[byte(crc>>8)^key[i]]
	}
	return crc % 16384
}

// crc16 is the table of the CRC with polynomial 0x1021 (Redis Cluster specification, "Keys distribution model").
var crc16 = func() (table [256]uint16) {
	for i := range table {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		table[i] = crc
	}
	return table
}()
