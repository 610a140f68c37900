package bloom_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// process is one process of a fleet: its guard, and its part of Redis.
type process struct {
	guard *bloom.Guard
	space *layers.Space
}

func newProcess(t *testing.T, client redis.UniversalClient, name string, o bloom.Options) process {
	t.Helper()
	g, err := bloom.NewGuard(o)
	require.NoError(t, err)
	r, err := layers.NewRedis(t.Context(), client, layers.RedisOptions{Prefix: "tcb", WriteTimeout: 2 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	s, err := r.Open(layers.SpaceOptions{Name: name})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return process{g, s}
}

func oneServer(t *testing.T) redis.UniversalClient {
	t.Helper()
	return redistest.Shared(t).Client(t)
}

func cluster(t *testing.T) redis.UniversalClient {
	t.Helper()
	return redistest.SharedCluster(t).Client(t)
}

// A million rows are scanned by one process; the others fetch the filter through Redis, know every row, and hear of new ones.
func TestFleetSharesOneScanThroughRedis(t *testing.T) {
	const rows = 1_000_000
	for name, open := range map[string]func(t *testing.T) redis.UniversalClient{"one server": oneServer, "cluster": cluster} {
		t.Run(name, func(t *testing.T) {
			c, cache, o := open(t), redistest.Name(t), bloom.Options{Capacity: rows}
			builder, other := newProcess(t, c, cache, o), newProcess(t, c, cache, o)
			require.ErrorIs(t, other.guard.Adopt(t.Context(), other.space), bloom.ErrNoSnapshot)
			scan := func(yield func(string, error) bool) {
				for i := range rows {
					if !yield(strconv.Itoa(i), nil) {
						return
					}
				}
			}
			report, err := builder.guard.Build(t.Context(), scan, bloom.BuildOptions{}, builder.space)
			require.NoError(t, err)
			require.EqualValues(t, rows, report.Rows)

			require.NoError(t, other.guard.Adopt(t.Context(), other.space))
			passed, wrong := 0, 0
			for i := range rows {
				if other.guard.Absent(strconv.Itoa(i)) {
					wrong++
				}
				if i < 100_000 && !other.guard.Absent("none "+strconv.Itoa(i)) {
					passed++
				}
			}
			require.Zero(t, wrong, "rows called absent")
			require.InDelta(t, 0.01, float64(passed)/100_000, 0.003, "false positives")
			stats := other.guard.Stats()
			require.InEpsilon(t, rows, stats.Added, 0.02)

			require.NoError(t, builder.space.AppendAnnounced(t.Context(), "new row"))
			require.NoError(t, other.guard.CatchUp(t.Context(), other.space))
			require.False(t, other.guard.Absent("new row"))
		})
	}
}

// fleet is a table of rows that writers announce through Redis and then insert, and processes that must not call them absent.
type fleet struct {
	table     [4000]atomic.Bool // committed rows
	processes []process
	wrong     atomic.Int64
	certain   atomic.Int64
	behind    atomic.Int64

	// losing is held to lose Redis's data, and shared from an announcement to its commit: what is lost between the two is the limit
	// that Build names.
	losing sync.RWMutex
}

func (f *fleet) scan(yield func(string, error) bool) {
	for i := range f.table {
		if f.table[i].Load() && !yield(strconv.Itoa(i), nil) {
			return
		}
	}
}

// write announces and inserts the rows from first on, every third of them.
func (f *fleet) write(ctx context.Context, p process, first int) {
	for i := first; i < len(f.table) && ctx.Err() == nil; i += 3 {
		f.insert(ctx, p, i)
	}
}

func (f *fleet) insert(ctx context.Context, p process, i int) {
	key := strconv.Itoa(i)
	f.losing.RLock()
	defer f.losing.RUnlock()
	for p.space.AppendAnnounced(ctx, key) != nil && ctx.Err() == nil {
	}
	p.guard.Add(key)
	f.table[i].Store(true)
	if p.guard.Absent(key) {
		f.wrong.Add(1)
	}
}

// lose takes away announcements and perhaps the snapshot.
func (f *fleet) lose(lose func()) {
	f.losing.Lock()
	defer f.losing.Unlock()
	lose()
}

// check reads the announcements, by a round of p's heartbeat, and asks for rows that were committed before that. Rows committed later
// are the marker's to protect, which this test has not.
func (f *fleet) check(ctx context.Context, p process) {
	var committed []int
	for i := range f.table {
		if f.table[i].Load() {
			committed = append(committed, i)
		}
	}
	err := p.guard.CatchUp(ctx, p.space)
	if errors.Is(err, bloom.ErrBehind) {
		f.behind.Add(1)
	} else if err != nil {
		return
	}
	for _, i := range committed {
		if p.guard.Absent(strconv.Itoa(i)) {
			f.wrong.Add(1)
		}
	}
	if p.guard.Absent("none") {
		f.certain.Add(1)
	}
}

// Never a false negative: three processes insert rows, build and fetch filters over and over, while the stream is trimmed and both
// keys are lost in between, as by a flush. Whatever a process calls absent after a round of its heartbeat was not committed before it.
func TestFleetNeverCallsAnInsertedRowAbsent(t *testing.T) {
	client, name := redistest.Shared(t).Client(t), redistest.Name(t)
	f := &fleet{}
	for range 3 {
		f.processes = append(f.processes, newProcess(t, client, name, bloom.Options{Capacity: 10_000, FalsePositiveRate: 1e-6}))
	}
	ctx, stop := context.WithCancel(t.Context())
	var writers, others sync.WaitGroup
	for i, p := range f.processes {
		writers.Go(func() { f.write(t.Context(), p, i) })
		others.Go(func() {
			for round := 0; ctx.Err() == nil; round++ {
				switch (round + i) % 4 {
				case 0:
					_, _ = p.guard.Build(ctx, f.scan, bloom.BuildOptions{}, p.space)
				case 1, 2:
					_ = p.guard.Adopt(ctx, p.space)
				}
				f.check(ctx, p)
			}
		})
	}
	others.Go(func() {
		key := "tcb:" + name + ":filter"
		for round := 0; ctx.Err() == nil; round++ {
			f.check(ctx, f.processes[round%3])
			switch round % 40 {
			case 20:
				f.lose(func() { client.XTrimMaxLen(ctx, key+":new", 1) })
			case 30:
				f.lose(func() { client.Del(ctx, key, key+":new") })
			}
		}
	})
	writers.Wait()
	stop()
	others.Wait()
	require.Zero(t, f.wrong.Load(), "committed rows called absent")

	_, err := f.processes[0].guard.Build(t.Context(), f.scan, bloom.BuildOptions{}, f.processes[0].space)
	require.NoError(t, err)
	for _, p := range f.processes {
		require.NoError(t, p.guard.Adopt(t.Context(), p.space))
		f.check(t.Context(), p)
	}
	require.Zero(t, f.wrong.Load(), "committed rows called absent")
	require.GreaterOrEqual(t, f.certain.Load(), int64(3), "the filters said something")
	t.Logf("certain in %d rounds, doubted in %d", f.certain.Load(), f.behind.Load())
}
