package layers

import (
	"slices"
	"strconv"
	"time"

	"github.com/stretchr/testify/require"
)

// set runs the first half of a Set.
func (w *world) set(op Token) Lease {
	l := w.invalidates(SetMode, op)
	w.want(l.Stamp != "", "no lease")
	l.ID, l.Token = w.id, op
	return l
}

func writeScenarios() []scenario {
	return []scenario{
		{
			name: "a set deletes, revokes and stores",
			run: func(w *world) {
				w.fills(w.granted(NewToken()), "v0", Stored)
				w.pass(testHard)
				old := w.granted(NewToken())
				op := NewToken()
				l := w.set(op)
				w.cut(l, 0)
				w.holdsNot()
				again := w.set(op) // its reply was lost
				w.want(l.Stamp == again.Stamp, "the repeat was granted another stamp")
				w.fills(old, "v0", Refused)
				got := w.fills(l, "v1", Stored)
				w.want(near(time.Until(got.Hard), testHard), "hard end in %v, want %v", time.Until(got.Hard), testHard)
				w.holds("v1")
				w.fills(l, "v1", StoredEarlier)
			},
			broken: []brokenLine{
				{"invalidate", "if mode == 'set' and g.token == token then return { 1, now, g.cut, g.stamp, noted(KEYS[3]) } end", ""},
				{"invalidate", "g.token, g.stamp, g.leaseEnd, g.leaseGen = token, int(micros), now + tonumber(ARGV[9]), generation", ""},
			},
		},
		{
			// 1 Set has its lease; 2 an invalidation for a later commit; 3 Set fills.
			name: "an invalidation that overtakes a set wins",
			run: func(w *world) {
				l := w.set(NewToken())
				w.invalidates(Once, "")
				w.fills(l, "v1", Refused)
				w.holdsNot()
			},
			broken: []brokenLine{{"invalidate", "endLease(g)\ng.backEnd = 0", "g.backEnd = 0"}},
		},
		{
			// The value may be older than the invalidation whose window is open.
			name: "a set inside another's window ends with it, inside another set's it does not",
			run: func(w *world) {
				w.fills(w.set(NewToken()), "v1", Stored)
				w.pass(time.Millisecond)
				l := w.set(NewToken())
				w.cut(l, 0)
				w.invalidates(Once, "")
				l = w.set(NewToken())
				w.cut(l, testWindow)
				w.fills(l, "v1", Stored)
				w.pass(testWindow)
				w.holdsNot()
			},
			broken: []brokenLine{
				{"invalidate", "if mode ~= 'set' then g.setEnd", "if true then g.setEnd"},
				{"invalidate", "g.cut = setEnd", "g.cut = 0"},
				{"invalidate", "g.setEnd = math.max(g.setEnd, now + window)", ""},
			},
		},
		{
			name: "a load granted in a set's window ends with it",
			run: func(w *world) {
				w.releases(w.set(NewToken()), false)
				w.cut(w.granted(NewToken()), testWindow)
			},
			broken: []brokenLine{{"invalidate", "g.winEnd = math.max(g.winEnd, now + window)", ""}},
		},
		{
			name: "a set beside a pending write lives for a slice, and in its last window until that ends",
			run: func(w *world) {
				w.invalidates(Begin, NewToken())
				w.pass(2 * testWindow)
				w.cut(w.set(NewToken()), testWindow)
				w.pass(testPend - 2*testWindow + time.Second)
				w.cut(w.set(NewToken()), testWindow-time.Second)
			},
			broken: []brokenLine{
				{"invalidate", "g.cut = now + window", "g.cut = 0"},
				{"invalidate", "g.cut = g.pendEnd + window", "g.cut = 0"},
			},
		},
		{
			name: "an invalidation may be repeated",
			run: func(w *world) {
				op := NewToken()
				for range 2 {
					w.fills(w.granted(NewToken()), "v", Stored)
					w.invalidates(Once, op)
					w.holdsNot()
				}
			},
			broken: []brokenLine{{"invalidate", "else\n  redis.call('UNLINK', KEYS[1])", "else\n  redis.call('UNLINK', KEYS[2])"}},
		},
		{
			name: "absent is stored, ends whole, and gives way to set and invalidation",
			run: func(w *world) {
				l := w.granted(NewToken())
				w.want(w.fill(l, Entry[string]{Absent: true}).Result == Stored, "absent was not stored")
				got := w.reads()
				w.want(got.Kind == Value && got.Absent && got.Value == "", "read %v, absent %v", got.Kind, got.Absent)
				a := w.acquire(NewToken())
				w.want(a.Verdict == Found && w.Decode(a).Absent, "got %v, want absent found", a.Verdict)
				w.fills(w.set(NewToken()), "v", Stored)
				w.holds("v")
				w.invalidates(Once, "")
				l = w.granted(NewToken())
				w.invalidates(Once, "")
				w.want(w.fill(l, Entry[string]{Absent: true}).Result == Refused, "absent was stored after an invalidation")
			},
		},
		{
			// Somebody else waits, or asked this process before: then it is not a key that is asked for once.
			name: "a first miss leaves nothing, unless somebody waits or something stands",
			run: func(w *world) {
				misses := func(l Lease, want FillResult) Filled {
					f, err := w.Encode(l, Entry[string]{Absent: true}, Lives{Soft: testSoft, Hard: testHard})
					require.NoError(w.t, err)
					f.FirstMiss = true
					got := w.Fill(w.t.Context(), f)[0]
					w.works(got.Err)
					w.expiring()
					w.want(got.Result == want, "fill of a first miss: got %v, want %v", got.Result, want)
					return got
				}
				value, guard := w.keys()
				l := w.granted(NewToken())
				got := misses(l, Withheld)
				w.want(near(time.Until(got.Hard), testHard) && !got.Born.IsZero(), "it ends in %v, want %v", time.Until(got.Hard), testHard)
				w.want(!w.exists(value) && !w.exists(guard), "a first miss left something in Redis")
				misses(l, Refused)

				l = w.granted(NewToken())
				w.want(w.acquire(NewToken()).Verdict == Held, "the lease is not held")
				misses(l, Stored)
				w.want(w.reads().Absent, "who waited finds nothing")

				w.fills(w.set(NewToken()), "v", Stored)
				w.pass(testSoft)
				misses(w.granted(NewToken()), Stored)
				w.want(w.reads().Absent, "a stale row was not replaced")
				w.invalidates(Once, "")
				w.rdb.Set(w.t.Context(), value, "unreadable", time.Hour)
				got = misses(w.granted(NewToken()), Stored)
				w.want(near(time.Until(got.Hard), testWindow), "stored in a window, it ends in %v, want %v", time.Until(got.Hard), testWindow)
				w.invalidates(Once, "")
				got = misses(w.granted(NewToken()), Withheld)
				w.want(near(time.Until(got.Hard), testWindow), "withheld in a window, it ends in %v, want %v", time.Until(got.Hard), testWindow)
				l = w.granted(NewToken())
				w.pass(testWindow)
				misses(l, WindowOver)
				w.want(w.fill(w.granted(NewToken()), Entry[string]{Absent: true}).Result == Stored, "a second miss was not stored")
			},
			broken: []brokenLine{
				{"fill", " and ARGV[12] == '1'", ""},
				{"fill", " and not g.woken", ""},
				{"fill", " and stored == ''", ""},
				{"fill", "if code == 1 and ARGV[12]", "if ARGV[12]"},
				{"fill", "then code = 3 end", "then end"},
			},
		},
		{
			name: "an announcement leaves a live value and a marker where there is none",
			run: func(w *world) {
				w.fills(w.granted(NewToken()), "v", Stored)
				w.invalidates(Announce, "")
				w.holds("v")
				w.invalidates(Once, "")
				w.pass(testWindow)
				w.want(w.fill(w.granted(NewToken()), Entry[string]{Absent: true}).Result == Stored, "absent was not stored")
				l := w.granted(NewToken(), instead(w.reads().Stored))
				w.invalidates(Announce, "")
				w.want(w.reads().Kind == Marker, "read %v, want a marker", w.reads().Kind)
				w.want(w.fill(l, Entry[string]{Absent: true}).Result == Refused, "an older absent was stored")
				value, _ := w.keys()
				w.want(w.rdb.PTTL(w.t.Context(), value).Val() <= 10*time.Second, "the marker stands for %v", w.rdb.PTTL(w.t.Context(), value).Val())
				w.pass(10*time.Second + time.Millisecond)
				w.holdsNot()
			},
			broken: []brokenLine{
				{"invalidate", "local live = e and", "local live = false and"},
				{"invalidate", "and not has(e.flags, ABSENT)", ""},
				{"invalidate", "endLease(g)\ng.backEnd = 0", "g.backEnd = 0"},
			},
		},
		{
			name: "a marker is not a value, and absent does not take its place",
			run: func(w *world) {
				w.invalidates(Announce, "")
				token := NewToken()
				a := w.acquire(token)
				w.want(a.Verdict == Granted && w.Decode(a).Kind == Nothing, "got %v with %v, want granted with nothing", a.Verdict, w.Decode(a).Kind)
				w.want(w.fill(w.granted(token), Entry[string]{Absent: true}).Result == WindowOver, "absent took the marker's place")
				w.want(w.reads().Kind == Marker, "read %v, want a marker", w.reads().Kind)
				w.granted(NewToken())
			},
			broken: []brokenLine{{"fill", " or marked and has(flags, ABSENT) then", " then"}},
		},
		{
			// 1 Announce; 2 the row commits; 3 A loads it: cut to the window; 4 that ends; 5 B, whose filter has not heard yet, reads.
			name: "a value over a marker leaves it behind, and invalidations do",
			run: func(w *world) {
				w.invalidates(Announce, "")
				l := w.granted(NewToken())
				f, err := w.Encode(l, Entry[string]{Value: "v"}, Lives{Soft: time.Second, Hard: 2 * time.Second})
				require.NoError(w.t, err)
				w.want(w.Fill(w.t.Context(), f)[0].Result == Stored, "not stored")
				w.holds("v")
				w.pass(time.Second)
				stale := w.reads()
				w.want(stale.Kind == Value && stale.Entry.Stale(time.Now()), "read %v, want a stale value", stale.Kind)
				w.pass(time.Second)
				w.want(w.reads().Kind == Marker, "read %v, want a marker", w.reads().Kind)
				a := w.acquire(NewToken())
				w.want(w.Decode(a).Kind == Nothing, "a value came along after its hard end")
				for _, mode := range []Mode{Once, Begin, End} {
					w.invalidates(mode, NewToken())
					w.want(w.reads().Kind == Marker, "after %v: read %v, want a marker", mode, w.reads().Kind)
				}
				w.pass(8*time.Second + time.Millisecond)
				w.holdsNot()
				w.expiring()
			},
			broken: []brokenLine{
				{"fill", "if now + left > hard then", "if false then"},
				{"acquire", "and e and e.hard > now and value", "and e and value"},
				{"invalidate", "elseif marked then", "elseif false then"},
				{"invalidate", "marker('KEEPTTL')", "marker('PXAT', int(now + KEPT))"},
			},
		},
		{
			name: "a row older than the stored or the oldest allowed one is not stored",
			run: func(w *world) {
				version := func(l Lease, v uint64) FillResult { return w.fill(l, Entry[string]{Value: "v", Version: v}).Result }
				const big = 1 << 63 // beyond what Lua can count
				w.want(version(w.granted(NewToken()), big+2) == Stored, "the first row was not stored")
				w.want(w.reads().Version == big+2, "read version %d", w.reads().Version)
				refresh := func() Lease { return w.granted(NewToken(), instead(w.reads().Stored)) }
				w.want(version(refresh(), big+1) == Older, "an older row was stored")
				w.pass(time.Millisecond)
				w.want(version(refresh(), big+2) == Stored, "the same row was not stored")
				w.works(w.invalidate(w.t.Context(), Once, NewToken(), big+4, w.id)[0].Err)
				w.works(w.invalidate(w.t.Context(), Once, NewToken(), big+3, w.id)[0].Err)
				w.want(version(w.granted(NewToken()), big+3) == Older, "a row older than the oldest allowed was stored")
				w.want(version(w.granted(NewToken()), big+4) == Stored, "the oldest allowed was not stored")
			},
			broken: []brokenLine{
				{"fill", "if version < g.minVersion then code = -3 end", ""},
				{"fill", "and version < hex(stored, 41) then", "and false then"},
				{"invalidate", "if ARGV[5] > g.minVersion then g.minVersion = ARGV[5] end", "g.minVersion = ARGV[5]"},
			},
		},
	}
}

func otherScenarios() []scenario {
	return []scenario{
		{
			// R15: 1 A's lease; 2 Clear; 3 A fills. The generation of the grant tells what its load may have read.
			name: "R15 a load from before a Clear is not read after it",
			run: func(w *world) {
				l := w.granted(NewToken())
				require.NoError(w.t, w.Move(w.t.Context()))
				w.expiring()
				w.fills(l, "v0", Stored)
				w.holdsNot()
				w.granted(NewToken())
			},
			broken: []brokenLine{{"fill", "envelope(head, generation, soft, hard, tail, token, ARGV[7])", "envelope(head, micros, soft, hard, tail, token, ARGV[7])"}},
		},
		{
			name: "a lease of an older generation is taken over at once",
			run: func(w *world) {
				l := w.granted(NewToken())
				require.NoError(w.t, w.Move(w.t.Context()))
				next := w.granted(NewToken())
				w.fills(l, "v0", Refused)
				w.fills(next, "v1", Stored)
				w.holds("v1")
			},
			broken: []brokenLine{{"acquire", "and g.leaseGen >= generation then", "then"}},
		},
		{
			name: "values of an older generation are misses, for stale too",
			run: func(w *world) {
				w.fills(w.granted(NewToken()), "v0", Stored)
				require.NoError(w.t, w.Move(w.t.Context()))
				a := w.acquire(NewToken())
				w.want(a.Verdict == Granted && a.raw == "", "got %v with %d bytes, want granted with nothing", a.Verdict, len(a.raw))
				w.invalidates(Announce, "")
				w.want(w.reads().Kind == Marker, "read %v, want a marker", w.reads().Kind)
			},
			broken: []brokenLine{
				{"acquire", "if e and e.generation < generation then e = nil end", ""},
				{"invalidate", "if e and e.generation < generation then e = nil end", ""},
			},
		},
		{
			name: "the greater generation stands, evicted or rolled back",
			run: func(w *world) {
				ctx := w.t.Context()
				require.NoError(w.t, w.beat(ctx))
				first := w.generation.Load()
				w.pass(time.Millisecond)
				require.NoError(w.t, w.Move(ctx))
				second := w.generation.Load()
				w.want(second > first, "moved from %d to %d", first, second)
				require.NoError(w.t, w.rdb.Del(ctx, w.genKey).Err())
				require.NoError(w.t, w.beat(ctx))
				w.want(w.generation.Load() == second, "got %d after the eviction, want %d", w.generation.Load(), second)
				require.NoError(w.t, w.rdb.Set(ctx, w.genKey, first, time.Minute).Err())
				require.NoError(w.t, w.beat(ctx))
				w.want(w.rdb.Get(ctx, w.genKey).Val() == strconv.FormatUint(second, 10), "Redis keeps %s after a rollback, want %d", w.rdb.Get(ctx, w.genKey).Val(), second)
				w.want(w.rdb.PTTL(ctx, w.genKey).Val() > time.Hour, "it is kept for %v", w.rdb.PTTL(ctx, w.genKey).Val())
				for _, bad := range []string{"", "no", "99999999999999999999", "-1"} {
					require.NoError(w.t, w.rdb.Set(ctx, w.genKey, bad, time.Minute).Err())
					require.NoError(w.t, w.beat(ctx))
					w.want(w.generation.Load() == second, "got %d from %q, want %d", w.generation.Load(), bad, second)
				}
				require.NoError(w.t, w.rdb.HSet(ctx, w.genKey+"x", "a", "b").Err())
				require.NoError(w.t, w.rdb.Rename(ctx, w.genKey+"x", w.genKey).Err())
				require.NoError(w.t, w.beat(ctx))
				w.expiring()
			},
			broken: []brokenLine{
				{"generation", "local g = math.max(stored, tonumber(ARGV[1]))", "local g = stored"},
				{"generation", "if move then g = math.max(micros, g + 1) end", ""},
			},
		},
		{
			name: "who was told held is woken, nobody else is",
			run: func(w *world) {
				ctx := w.t.Context()
				bus := w.rdb.Subscribe(ctx, w.channel)
				defer func() { _ = bus.Close() }()
				_, err := bus.Receive(ctx)
				require.NoError(w.t, err)
				w.fills(w.granted(NewToken()), "v", Stored) // nobody waits
				w.invalidates(Once, "")
				l := w.granted(NewToken())
				w.acquire(NewToken())
				w.fills(l, "v", Stored)
				w.invalidates(Once, "")
				l = w.granted(NewToken())
				w.acquire(NewToken())
				w.releases(l, true)
				w.releases(w.granted(NewToken()), false)
				require.NoError(w.t, w.Move(ctx))
				var kinds []byte
				for !slices.Contains(kinds, 'c') {
					m, err := bus.ReceiveMessage(ctx)
					require.NoError(w.t, err)
					if m.Payload[0] != 'b' {
						kinds = append(kinds, m.Payload[0])
					}
				}
				w.want(string(kinds) == "irirc", "events %q, want irirc", kinds)
			},
			broken: []brokenLine{
				{"acquire", "g.waited = 1", ""},
				{"guard", "if g.woken then redis.call", "if true then redis.call"},
				{"fill", "wake(g, ARGV[9], ARGV[10])", ""},
				{"release", "wake(g, ARGV[5], ARGV[6])", ""},
			},
		},
		{
			name: "what cannot be read is nothing, and is replaced",
			run: func(w *world) {
				ctx := w.t.Context()
				value, guard := w.keys()
				for _, bad := range []string{"x", "tc\x02" + string(make([]byte, 80)), "|", "a|b|c", "|||||||||||||||"} {
					require.NoError(w.t, w.rdb.Set(ctx, value, bad, time.Minute).Err())
					require.NoError(w.t, w.rdb.Set(ctx, guard, bad, time.Minute).Err())
					w.want(w.reads().Kind == Foreign, "%q reads as %v, want foreign", bad, w.reads().Kind)
					l := w.granted(NewToken())
					w.fills(l, "v", Stored)
					w.holds("v")
				}
				for range 2 {
					require.NoError(w.t, w.rdb.Del(ctx, value, guard).Err())
					require.NoError(w.t, w.rdb.HSet(ctx, value, "a", "b").Err())
					require.NoError(w.t, w.rdb.HSet(ctx, guard, "a", "b").Err())
					require.NoError(w.t, w.rdb.Expire(ctx, value, time.Minute).Err())
					require.NoError(w.t, w.rdb.Expire(ctx, guard, time.Minute).Err())
					w.reads() // must not fail
					w.fills(w.granted(NewToken()), "v", Stored)
					w.holds("v")
					w.invalidates(Once, "")
				}
			},
			broken: []brokenLine{{"guard", "if string.find(reply.err, 'WRONGTYPE', 1, true) then return false end", ""}},
		},
	}
}
