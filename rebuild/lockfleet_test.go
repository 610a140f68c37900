package rebuild

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// The lock fleet: three operating-system processes of 20 goroutines each, which lock, write under their locks to a resource that fences,
// and unlock, while processes are killed or stopped and Redis is harmed. What each did, and when, is judged afterwards.
const (
	fleetProcesses  = 3
	fleetGoroutines = 20
	fleetLease      = 300 * time.Millisecond
	fleetPermits    = 3

	// lockWorker makes this test binary a process of the fleet: the addresses of the locks' Redis and of the resource, with a comma between.
	lockWorker = "TIERCACHE_TEST_LOCK_WORKER"
	// lockFleetLasts is how long the fleet of a test is harmed, as a duration.
	lockFleetLasts = "TIERCACHE_LOCK_FLEET"
)

// The kinds of locks, and their names: few goroutines at a name, so that histories can be judged, and enough for queues.
const (
	mutexKind, fairKind, writeKind, readKind, permitKind = "mutex", "fair", "write", "read", "permit"

	namesOfAKind = 5
)

// lockEvent is what a process tells of one call. Its moments are of the machine's clock, in nanoseconds; Return is 0 where it only began.
type lockEvent struct {
	ID           int64 // of the call, in its process
	Op           string
	Kind, Name   string
	Token        uint64
	Call, Return int64
	OK           bool   // granted, accepted, or unlocked without having lost it
	End          int64  // of an unlock: when the holder stopped relying on its lease
	Err          string // where something is wrong with the answer
}

// fencedWrite is a write under a lock: the resource takes the token only if it has seen none that is greater.
var fencedWrite = redis.NewScript(`
local seen = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) < seen then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1`)

// runLockWorker is the life of one process: until its input ends it locks, writes and unlocks; then each goroutine takes each lock
// once more, so that nobody who waits was forgotten.
func runLockWorker(addresses string) error {
	locks, resource, _ := strings.Cut(addresses, ",")
	rdb, store := redis.NewClient(&redis.Options{Addr: locks, PoolSize: 40}), redis.NewClient(&redis.Options{Addr: resource, PoolSize: 40})
	w := &lockProcess{store: store, out: json.NewEncoder(os.Stdout)}
	var errs [4]error
	w.mutex, errs[0] = NewMutex(rdb, MutexOptions{LeaseTime: fleetLease})
	w.fair, errs[1] = NewMutex(rdb, MutexOptions{Prefix: "tc-fair", LeaseTime: fleetLease, Fair: true})
	w.rw, errs[2] = NewRWMutex(rdb, MutexOptions{LeaseTime: fleetLease})
	w.permits, errs[3] = NewSemaphore(rdb, SemaphoreOptions{LeaseTime: fleetLease, Limit: fleetPermits})
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for g := range fleetGoroutines {
		random := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(g))) //nolint:gosec // spreads load
		all.Go(func() {
			for ctx.Err() == nil {
				w.turn(random, pick(random), time.Duration(50+random.IntN(500))*time.Millisecond)
			}
			last := everyLock()
			random.Shuffle(len(last), func(i, j int) { last[i], last[j] = last[j], last[i] })
			for _, of := range last {
				w.turn(random, of, time.Minute)
			}
		})
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	stop()
	all.Wait()
	return errors.Join(err, w.mutex.Close(), w.fair.Close(), w.rw.Close(), w.permits.Close(), rdb.Close(), store.Close())
}

// lockProcess is one process of the fleet.
type lockProcess struct {
	mutex, fair *Mutex
	rw          *RWMutex
	permits     *Semaphore
	store       *redis.Client

	mu    sync.Mutex
	calls int64
	out   *json.Encoder
}

type lockOf struct{ kind, name string }

func everyLock() (all []lockOf) {
	for _, kind := range []string{mutexKind, fairKind, writeKind, readKind, permitKind} {
		for i := range namesOfAKind {
			all = append(all, lockOf{kind, strconv.Itoa(i)})
		}
	}
	return all
}

func pick(random *rand.Rand) lockOf {
	all := everyLock()
	return all[random.IntN(len(all))]
}

func (w *lockProcess) tell(e *lockEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.ID == 0 {
		w.calls++
		e.ID = w.calls
	}
	_ = w.out.Encode(e) // whoever listens may be gone
}

func clock() int64 { return time.Now().UnixNano() }

// turn locks, writes once or twice, and unlocks.
func (w *lockProcess) turn(random *rand.Rand, of lockOf, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	lock := map[string]func(context.Context, string) (*Lease, error){
		mutexKind: w.mutex.Lock, fairKind: w.fair.Lock, writeKind: w.rw.Lock, readKind: w.rw.RLock, permitKind: w.permits.Acquire,
	}[of.kind]
	locked := lockEvent{Op: "lock", Kind: of.kind, Name: of.name, Call: clock()}
	lease, err := lock(ctx, of.name)
	locked.Return = clock()
	if err != nil {
		if !errors.Is(err, context.DeadlineExceeded) || patience == time.Minute {
			locked.Err = err.Error()
			w.tell(&locked)
		}
		return
	}
	locked.OK, locked.Token = true, lease.Token()
	w.tell(&locked)
	for range 1 + random.IntN(2) {
		time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
		careless := random.IntN(4) == 0 && lease.Check() != nil // it looked, and writes all the same
		if of.kind == readKind || of.kind == permitKind || !careless && lease.Check() != nil {
			continue // only who is alone writes
		}
		written := lockEvent{Op: "write", Kind: of.kind, Name: of.name, Token: lease.Token(), Call: clock()}
		w.tell(&written) // begun: the process may not live to say more
		n, err := fencedWrite.Run(context.Background(), w.store, []string{of.kind + of.name}, lease.Token()).Int()
		if err != nil {
			written.Err = err.Error()
		}
		written.OK, written.Return = n == 1, clock()
		w.tell(&written)
	}
	unlocked := lockEvent{Op: "unlock", Kind: of.kind, Name: of.name, Token: lease.Token(), Call: clock()}
	unlocked.End = unlocked.Call
	if lease.Check() != nil {
		unlocked.End = 0 // it ended at a moment that nobody saw
	}
	err = lease.Unlock(context.Background())
	unlocked.OK, unlocked.Return = err == nil, clock()
	if err != nil && !errors.Is(err, ErrLeaseLost) && !errors.Is(err, ErrUnavailable) {
		unlocked.Err = err.Error()
	}
	w.tell(&unlocked)
}

// lockFleet is the fleet as its test sees it.
type lockFleet struct {
	t               *testing.T
	locks, resource *redistest.Server
	all             [fleetProcesses]*fleetMember
	history         []lockEvent // of those that have ended
}

// fleetMember is a process of the fleet.
type fleetMember struct {
	cmd   *exec.Cmd
	in    io.Closer
	heard chan []lockEvent // once, when it has ended
}

func newLockFleet(t *testing.T) *lockFleet {
	t.Helper()
	f := &lockFleet{t: t, locks: redistest.Start(t), resource: redistest.Start(t)}
	for i := range f.all {
		f.all[i] = f.start()
	}
	t.Cleanup(func() {
		for _, m := range f.all {
			_ = m.cmd.Process.Kill() // in case the test has failed half-way
		}
	})
	return f
}

func (f *lockFleet) start() *fleetMember {
	f.t.Helper()
	self, err := os.Executable()
	require.NoError(f.t, err)
	m := &fleetMember{cmd: exec.Command(self), heard: make(chan []lockEvent, 1)} //nolint:noctx // it is killed, or ends when its input does
	m.cmd.Env = append(os.Environ(), lockWorker+"="+f.locks.Addr+","+f.resource.Addr)
	m.cmd.Stderr = os.Stderr
	in, err := m.cmd.StdinPipe()
	require.NoError(f.t, err)
	out, err := m.cmd.StdoutPipe()
	require.NoError(f.t, err)
	require.NoError(f.t, m.cmd.Start())
	m.in = in
	go func() {
		var all []lockEvent
		lines := json.NewDecoder(bufio.NewReader(out))
		for {
			var e lockEvent
			if lines.Decode(&e) != nil { // it has ended, maybe in the middle of a line
				m.heard <- all
				return
			}
			all = append(all, e)
		}
	}()
	return m
}

// ended collects what a process said, once it is gone. What it began and did not live to end stays open.
func (f *lockFleet) ended(m *fleetMember) {
	f.t.Helper()
	select {
	case all := <-m.heard:
		last := map[int64]lockEvent{}
		for _, e := range all {
			last[e.ID] = e
		}
		for _, e := range last {
			f.history = append(f.history, e)
		}
	case <-time.After(2 * time.Minute):
		require.FailNow(f.t, "a process of the fleet does not end: somebody who waits was forgotten")
	}
	_ = m.cmd.Wait()
}

// kill kills a process and starts another in its place.
func (f *lockFleet) kill(i int) {
	f.t.Helper()
	require.NoError(f.t, f.all[i].cmd.Process.Kill())
	f.ended(f.all[i])
	f.all[i] = f.start()
}

// finish lets every goroutine take every lock once more, and returns when all processes have ended.
func (f *lockFleet) finish() {
	f.t.Helper()
	for _, m := range f.all {
		require.NoError(f.t, m.in.Close())
	}
	for _, m := range f.all {
		f.ended(m)
		require.True(f.t, m.cmd.ProcessState.Success(), "a process of the fleet failed: %v", m.cmd.ProcessState)
	}
}

// fenceModel is a resource that fences: a write is accepted if none with a greater token was before it. Of a write that nobody lived to
// hear of, both are possible. Its state is the greatest token accepted.
var fenceModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		by := map[lockOf]int{}
		for _, op := range history {
			of := op.Input.(lockEvent).of()
			i, known := by[of]
			if !known {
				i = len(parts)
				by[of], parts = i, append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, _ any) (bool, any) {
		accepted, e := state.(uint64), input.(lockEvent)
		switch {
		case e.Return == 0:
			return true, max(accepted, e.Token)
		case e.OK:
			return e.Token >= accepted, max(accepted, e.Token)
		}
		return e.Token < accepted, accepted
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// of is the name that is locked: readers and writers share theirs.
func (e lockEvent) of() lockOf {
	if e.Kind == readKind {
		return lockOf{writeKind, e.Name}
	}
	return lockOf{e.Kind, e.Name}
}

// judge checks the history: writes against the model, grants for tokens that grow, and that nothing was answered that should not be.
func (f *lockFleet) judge() {
	f.t.Helper()
	var writes []porcupine.Operation
	grants := map[lockOf][]lockEvent{}
	granted, refused, open := 0, 0, 0
	for i, e := range f.history {
		require.Empty(f.t, e.Err, "%+v", e)
		switch {
		case e.Op == "lock" && e.OK:
			granted++
			grants[e.of()] = append(grants[e.of()], e)
		case e.Op == "write":
			op := porcupine.Operation{ClientId: i, Input: e, Call: e.Call, Return: e.Return}
			if e.Return == 0 {
				op.Return = math.MaxInt64
				open++
			} else if !e.OK {
				refused++
			}
			writes = append(writes, op)
		}
	}
	f.t.Logf("%d grants, %d writes, of which %d were refused and of %d nobody heard", granted, len(writes), refused, open)
	require.GreaterOrEqual(f.t, granted, fleetProcesses*fleetGoroutines*len(everyLock()), "everyone had every lock at least once")
	for of, all := range grants {
		requireGrowing(f.t, of, all)
	}
	result := porcupine.CheckOperationsTimeout(fenceModel, writes, time.Minute)
	require.Equal(f.t, porcupine.Ok, result, "writes accepted out of order")
}

// requireGrowing fails if a grant that began after another had returned has no greater token. Without such a pair the grants stand in the
// order of their tokens as well as in time: they are linearizable, and no search is needed to see it.
func requireGrowing(t *testing.T, of lockOf, all []lockEvent) {
	t.Helper()
	slices.SortFunc(all, func(a, b lockEvent) int { return cmp.Compare(a.Token, b.Token) })
	for i := range all[1:] {
		require.NotEqual(t, all[i].Token, all[i+1].Token, "%v: a token was granted twice", of)
	}
	earliest := lockEvent{Return: math.MaxInt64} // to return, of those with greater tokens
	for _, e := range slices.Backward(all) {
		require.LessOrEqual(t, e.Call, earliest.Return, "%v: token %d was granted after %d", of, e.Token, earliest.Token)
		if e.Return < earliest.Return {
			earliest = e
		}
	}
}

// exclude fails if two held at once what only one may hold, or more than fleetPermits a semaphore. A holder that nobody saw end is not counted.
func (f *lockFleet) exclude() {
	f.t.Helper()
	type edge struct {
		at    int64
		begin bool
		e     lockEvent
	}
	ends := map[string]int64{}
	key := func(e lockEvent) string { return e.Kind + "/" + e.Name + "/" + strconv.FormatUint(e.Token, 10) }
	for _, e := range f.history {
		if e.Op == "unlock" && e.End > 0 {
			ends[key(e)] = e.End
		}
	}
	by := map[lockOf][]edge{}
	for _, e := range f.history {
		if end := ends[key(e)]; e.Op == "lock" && e.OK && end > 0 {
			by[e.of()] = append(by[e.of()], edge{e.Return, true, e}, edge{end, false, e})
		}
	}
	require.NotEmpty(f.t, by)
	for of, edges := range by {
		slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
		inside := map[uint64]lockEvent{}
		writers := 0
		for _, x := range edges {
			n := 1
			if !x.begin {
				delete(inside, x.e.Token)
				n = -1
			} else {
				inside[x.e.Token] = x.e
			}
			if x.e.Kind != readKind && x.e.Kind != permitKind {
				writers += n
			}
			if of.kind == permitKind {
				require.LessOrEqual(f.t, len(inside), fleetPermits, "%v: permits at once: %v", of, inside)
			} else if writers > 0 {
				require.Len(f.t, inside, 1, "%v: held at once: %v", of, inside)
			}
		}
	}
}

// harm does one of these things every 50 ms to a quarter of a second, for as long as the test lasts.
func (f *lockFleet) harm(seed uint64, things ...func(random *rand.Rand)) {
	f.t.Helper()
	lasts := 2 * time.Second
	if text := os.Getenv(lockFleetLasts); text != "" {
		var err error
		lasts, err = time.ParseDuration(text)
		require.NoError(f.t, err, lockFleetLasts)
	}
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a seed that replays the harm
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		time.Sleep(time.Duration(50+random.IntN(200)) * time.Millisecond) // what the test consists of: nothing is expected to have happened by then
		things[random.IntN(len(things))](random)
	}
}

func (f *lockFleet) killOne(random *rand.Rand) { f.kill(random.IntN(fleetProcesses)) }

// stopOne stops a process for longer than a lease.
func (f *lockFleet) stopOne(random *rand.Rand) {
	p := f.all[random.IntN(fleetProcesses)].cmd.Process
	require.NoError(f.t, redistest.Pause(p))
	time.Sleep(fleetLease + time.Duration(random.IntN(300))*time.Millisecond)
	require.NoError(f.t, redistest.Resume(p))
}

func (f *lockFleet) admin(args ...any) {
	f.t.Helper()
	require.NoError(f.t, f.locks.Client(f.t).Do(f.t.Context(), args...).Err(), args)
}

func (f *lockFleet) flush(*rand.Rand) { f.admin("FLUSHALL") }

func (f *lockFleet) cut(random *rand.Rand) {
	f.admin("CLIENT", "KILL", "TYPE", []string{"normal", "pubsub"}[random.IntN(2)], "SKIPME", "yes")
}

func (f *lockFleet) stopRedis(random *rand.Rand) {
	f.locks.Stop()
	time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
	f.locks.Continue()
}

// Property: as long as the locks' Redis keeps its data, no two hold at once what one may hold and no more hold a semaphore than it has permits,
// whoever is killed and whatever connections break; what the dead held comes back, and nobody who waits is forgotten.
// Broken by: lock_acquire.lua granting without the look at the holders; lock_head.lua without sweep; a wake that is dropped with polling off.
func TestLockFleetExcludes(t *testing.T) {
	f := newLockFleet(t)
	f.harm(1, f.killOne, f.cut, f.stopRedis)
	f.finish()
	f.judge()
	f.exclude()
}

// Property: whatever is done to processes and to Redis, its data included, the tokens of a name grow with its grants, and the resource accepts
// no write of an older holder after one of a newer (a linearizable history).
// Broken by: lock_head.lua's grant without the server's time and the floor; a resource that does not compare.
func TestLockFleetFences(t *testing.T) {
	f := newLockFleet(t)
	f.harm(2, f.killOne, f.stopOne, f.flush, f.cut, f.stopRedis)
	f.finish()
	f.judge()
}
