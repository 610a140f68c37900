package layers

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/redistest"
)

// The lives of these tests are so long that none ends by itself on any machine: time passes only where a test says so (world.pass).
const (
	testWindow = time.Minute
	testLease  = 3 * time.Minute
	testPend   = 30 * time.Minute
	testBase   = time.Minute
	testMax    = 4 * time.Minute
	testSoft   = 3 * time.Hour
	testHard   = 5 * time.Hour
)

// world is one key in one Redis, and a process that talks to it. It collects what was wrong instead of ending the test, so that a
// scenario can also be run where it must go wrong.
type world struct {
	t    testing.TB
	mini *miniredis.Miniredis // nil: a real server
	now  time.Time            // of mini
	rdb  *redis.Client
	r    *Redis
	*Shared[string]
	id  string
	bad []string
}

// newWorld opens a space on a real server, or on miniredis: it shows that the scripts are portable, and its clock stands still.
func newWorld(tb testing.TB, mini bool) *world {
	tb.Helper()
	w := &world{t: tb, id: "k"}
	if mini {
		w.mini = miniredis.RunT(tb)
		w.now = time.Now()
		w.mini.SetTime(w.now)
		w.rdb = redis.NewClient(&redis.Options{Addr: w.mini.Addr()})
		tb.Cleanup(func() { _ = w.rdb.Close() })
	} else {
		w.rdb = redistest.Shared(tb).Client(tb)
	}
	w.r, w.Shared = w.process(redistest.Name(tb), Events{})
	return w
}

// process opens the space of a name as another process would.
func (w *world) process(name string, e Events) (*Redis, *Shared[string]) {
	w.t.Helper()
	r, err := NewRedis(w.t.Context(), w.rdb, RedisOptions{ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, r.Close()) })
	s, err := r.Open(SpaceOptions{
		Name: name, Window: testWindow, LeaseTime: testLease, PendTime: testPend, BackoffBase: testBase, BackoffMax: testMax, Events: e,
	})
	require.NoError(w.t, err)
	w.t.Cleanup(s.Close)
	return r, NewShared[string](s, Raw, 7, Limits{})
}

func (w *world) works(err error) { w.want(err == nil, "%v", err) }

// instead makes a rebuild replace the copy stored at the moment seen.
func instead(seen int64) func(*Ask) { return func(a *Ask) { a.Seen = seen } }

func (w *world) want(ok bool, format string, args ...any) {
	if !ok {
		w.bad = append(w.bad, fmt.Sprintf(format, args...))
	}
}

// near reports whether got is want, or less by no more than a test may take.
func near(got, want time.Duration) bool { return got <= want && got > want-30*time.Second }

func (w *world) keys() (value, guard string) {
	key, err := w.valueKey(w.id)
	require.NoError(w.t, err)
	return key, guardKey(key)
}

// expiring demands that nothing stands without an expiry: it is called after every script.
func (w *world) expiring() {
	value, guard := w.keys()
	for _, key := range []string{value, guard, w.genKey} {
		left, err := w.rdb.PTTL(w.t.Context(), key).Result()
		require.NoError(w.t, err)
		w.want(left != -1, "%s stands without an expiry", key)
	}
}

func (w *world) acquire(token Token, set ...func(*Ask)) Acquired {
	ask := Ask{ID: w.id, Token: token, WantStale: true}
	for _, f := range set {
		f(&ask)
	}
	a := w.Acquire(w.t.Context(), ask)[0]
	w.works(a.Err)
	w.expiring()
	return a
}

func (w *world) granted(token Token, set ...func(*Ask)) Lease {
	a := w.acquire(token, set...)
	w.want(a.Verdict == Granted, "acquire: got %v, want granted", a.Verdict)
	a.Lease.ID, a.Lease.Token = w.id, token // so that what follows a wrong verdict can still be sent
	return a.Lease
}

func (w *world) fill(l Lease, e Entry[string]) Filled {
	f, err := w.Encode(l, e, Lives{Soft: testSoft, Hard: testHard})
	require.NoError(w.t, err)
	got := w.Fill(w.t.Context(), f)[0]
	w.works(got.Err)
	w.expiring()
	return got
}

func (w *world) fills(l Lease, value string, want FillResult) Filled {
	got := w.fill(l, Entry[string]{Value: value})
	w.want(got.Result == want, "fill: got %v, want %v", got.Result, want)
	return got
}

func (w *world) invalidates(mode Mode, op Token) Lease {
	got := w.Invalidate(w.t.Context(), mode, op, w.id)[0]
	w.works(got.Err)
	w.expiring()
	return got.Lease
}

func (w *world) releases(l Lease, backOff bool) {
	w.works(w.Release(w.t.Context(), backOff, l)[0])
	w.expiring()
}

func (w *world) renews(l Lease) bool {
	got := w.Renew(w.t.Context(), l)[0]
	w.works(got.Err)
	w.expiring()
	return got.Held
}

func (w *world) renewsPending(op Token) {
	w.works(w.RenewPending(w.t.Context(), op, w.id)[0])
	w.expiring()
}

// beganByAnOlderRelease leaves what Begin left before pendToken named moments: the last owner's token alone.
func (w *world) beganByAnOlderRelease(op Token) {
	w.invalidates(Begin, op)
	_, guard := w.keys()
	w.move(guard, 0, func(raw string) string {
		fields := strings.Split(raw, "|")
		fields[8] = string(op)
		return strings.Join(fields, "|")
	})
}

func (w *world) reads() Reading[string] {
	got, err := w.Get(w.t.Context(), w.id, Mark{})
	w.works(err)
	return got
}

func (w *world) holds(want string) {
	got := w.reads()
	w.want(got.Kind == Value && got.Value == want, "Redis holds %v %q, want %q", got.Kind, got.Value, want)
}

func (w *world) holdsNot() {
	got := w.reads()
	w.want(got.Kind == Nothing, "Redis holds %v %q, want nothing", got.Kind, got.Value)
}

// cut demands how long a value filled under l may live; 0: as long as it likes.
func (w *world) cut(l Lease, want time.Duration) {
	if want == 0 {
		w.want(l.Cut.IsZero(), "the lease is cut in %v, want no cut", time.Until(l.Cut))
		return
	}
	w.want(!l.Cut.IsZero(), "the lease has no cut, want one in %v", want)
	w.want(l.Cut.IsZero() || near(time.Until(l.Cut), want), "the lease is cut in %v, want %v", time.Until(l.Cut), want)
}

// pass lets d of server time pass for the key: on miniredis the clock moves, on a real server every moment it keeps of the key moves
// back, expiries included.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	if w.mini != nil {
		w.now = w.now.Add(d)
		w.mini.SetTime(w.now)
		w.mini.FastForward(d)
		return
	}
	value, guard := w.keys()
	w.move(guard, d, func(raw string) string {
		fields := strings.Split(raw, "|")
		for _, i := range []int{2, 3, 5, 6, 7, 10, 11} {
			if n, err := strconv.ParseInt(fields[i], 10, 64); err == nil && n > 0 {
				fields[i] = strconv.FormatInt(n-d.Milliseconds(), 10)
			}
		}
		for i := tokenLength; i < len(fields[8]); i += tokenLength + 13 { // the moment behind each owner of a pending write
			n, err := strconv.ParseInt(fields[8][i:i+13], 10, 64)
			require.NoError(w.t, err)
			fields[8] = fields[8][:i] + strconv.FormatInt(n-d.Milliseconds(), 10) + fields[8][i+13:]
		}
		return strings.Join(fields, "|")
	})
	w.move(value, d, func(raw string) string {
		e, err := parseEnvelope(raw)
		require.NoError(w.t, err)
		e.stored, e.soft, e.hard = e.stored-d.Milliseconds(), e.soft-d.Milliseconds(), e.hard-d.Milliseconds()
		return e.String()
	})
}

func (w *world) move(key string, d time.Duration, change func(string) string) {
	w.t.Helper()
	ctx := w.t.Context()
	raw, err := w.rdb.Get(ctx, key).Result()
	if err != nil {
		require.ErrorIs(w.t, err, redis.Nil)
		return
	}
	end, err := w.rdb.PExpireTime(ctx, key).Result()
	require.NoError(w.t, err)
	if end == -2 { // it ran out since
		return
	}
	require.NoError(w.t, w.rdb.SetArgs(ctx, key, change(raw), redis.SetArgs{ExpireAt: time.UnixMilli((end - d).Milliseconds())}).Err())
}

func (w *world) exists(key string) bool {
	n, err := w.rdb.Exists(w.t.Context(), key).Result()
	require.NoError(w.t, err)
	return n == 1
}

// scenario is an interleaving of the protocol and what must come of it. Each broken is a line of a script that the scenario needs: with
// the line broken it must go wrong.
type scenario struct {
	name   string
	run    func(w *world)
	broken []brokenLine
}

// brokenLine is one line of a script, and what takes its place.
type brokenLine struct{ script, line, instead string }

func scriptsByName() map[string]**borrowed.Script {
	return map[string]**borrowed.Script{
		"acquire": &acquireScript, "fill": &fillScript, "release": &releaseScript, "renew": &renewScript, "invalidate": &invalidateScript,
		"generation": &generationScript,
	}
}

func allScenarios() []scenario {
	return append(append(append(leaseScenarios(), windowScenarios()...), writeScenarios()...), otherScenarios()...)
}

// Property: every scenario of the protocol comes out right, on a real server and on miniredis.
func TestProtocol(t *testing.T) {
	for _, mini := range []bool{false, true} {
		for _, sc := range allScenarios() {
			t.Run(fmt.Sprintf("%s/mini=%v", sc.name, mini), func(t *testing.T) {
				w := newWorld(t, mini)
				sc.run(w)
				for _, bad := range w.bad {
					t.Error(bad)
				}
			})
		}
	}
}

// Property: each rule of the scripts that a scenario is about is needed. With its line broken the scenario goes wrong.
func TestProtocolWithALineBrokenGoesWrong(t *testing.T) {
	for _, sc := range allScenarios() {
		for i, b := range sc.broken {
			t.Run(fmt.Sprintf("%s/%s-%d", sc.name, b.script, i), func(t *testing.T) {
				if b.script == "guard" {
					for name, s := range scriptsByName() {
						breakLine(t, name, s, b, strings.Count((*s).Text, b.line) == 1)
					}
				} else {
					breakLine(t, b.script, scriptsByName()[b.script], b, true)
				}
				w := newWorld(t, false)
				sc.run(w)
				require.NotEmpty(t, w.bad, "nothing went wrong without %q", b.line)
				for _, bad := range w.bad {
					ran := strings.Contains(bad, "WRONGTYPE") || strings.Contains(bad, "invalid expire time") // going wrong, not being unable to run
					require.True(t, ran || !strings.Contains(bad, "ERR "), "the broken script does not run: %s", bad)
				}
			})
		}
	}
}

func breakLine(t *testing.T, name string, s **borrowed.Script, b brokenLine, found bool) {
	t.Helper()
	whole := *s
	require.True(t, found && strings.Count(whole.Text, b.line) == 1, "%s has not exactly one line %q", name, b.line)
	*s = borrowed.NewScript(name, strings.Replace(whole.Text, b.line, b.instead, 1))
	t.Cleanup(func() { *s = whole })
}
