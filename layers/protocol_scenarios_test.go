package layers

import (
	"time"

	"github.com/stretchr/testify/require"
)

// The names R1 to R15 are those of the table of races in docs and in the scripts' headers.

func leaseScenarios() []scenario {
	return []scenario{
		{
			// R1: 1 A loads v0; 2 a write; 3 B invalidates; 4 A fills v0.
			name: "R1 an older load is not stored after an invalidation",
			run: func(w *world) {
				l := w.granted(NewToken())
				w.invalidates(Once, "")
				w.fills(l, "v0", Refused)
				w.holdsNot()
			},
			broken: []brokenLine{
				{"invalidate", "endLease(g)\ng.backEnd = 0", "g.backEnd = 0"},
				{"fill", "if g.token ~= token or g.stamp ~= ARGV[11] then", "if false then"},
			},
		},
		{
			// A guard that was evicted is a lease that was lost.
			name: "a missing guard refuses a fill",
			run: func(w *world) {
				l := w.granted(NewToken())
				_, guard := w.keys()
				require.NoError(w.t, w.rdb.Del(w.t.Context(), guard).Err())
				w.fills(l, "v0", Refused)
				w.holdsNot()
			},
			broken: []brokenLine{{"fill", "if g.token ~= token or g.stamp ~= ARGV[11] then", "if g.token ~= '' and g.token ~= token then"}},
		},
		{
			// R8: 1 A's acquire is sent twice, the first copy is delayed; 2 the second is granted; 3 A loads v0; 4 an invalidation;
			// 5 the first copy runs: the same token is granted again; 6 A fills v0.
			name: "R8 a delayed copy of acquire does not bring a revoked lease back",
			run: func(w *world) {
				token := NewToken()
				l := w.granted(token)
				w.pass(time.Millisecond)
				w.invalidates(Once, "")
				w.granted(token)
				w.fills(l, "v0", Refused)
				w.holdsNot()
			},
			broken: []brokenLine{{"fill", " or g.stamp ~= ARGV[11] then", " then"}},
		},
		{
			// R9: 1 B reads nothing; 2 A fills and is done; 3 B asks for the lease.
			name: "R9 acquire looks again",
			run: func(w *world) {
				w.holdsNot()
				w.fills(w.granted(NewToken()), "v1", Stored)
				a := w.acquire(NewToken())
				w.want(a.Verdict == Found && w.Decode(a).Value == "v1", "got %v %q, want v1 found", a.Verdict, w.Decode(a).Value)
			},
			broken: []brokenLine{{"acquire", "if e and e.soft > now and e.stored > tonumber(ARGV[7]) then", "if false then"}},
		},
		{
			name: "acquire twice is one grant",
			run: func(w *world) {
				w.invalidates(Once, "")
				token := NewToken()
				one := w.acquire(token)
				w.pass(time.Second)
				two := w.acquire(token)
				w.want(one.Verdict == Granted && two.Verdict == Granted, "got %v and %v, want granted twice", one.Verdict, two.Verdict)
				w.want(one.Lease.Stamp == two.Lease.Stamp, "the stamps %s and %s differ", one.Lease.Stamp, two.Lease.Stamp)
				w.cut(two.Lease, testWindow-time.Second)
			},
			broken: []brokenLine{
				{"acquire", "local mine = g.token == token", "local mine = false"},
				{"acquire", "if not mine then", "if true then"},
			},
		},
		{
			name: "who comes second is told how long the lease has left",
			run: func(w *world) {
				w.granted(NewToken())
				a := w.acquire(NewToken())
				w.want(a.Verdict == Held && near(a.Left, testLease), "got %v for %v, want held for %v", a.Verdict, a.Left, testLease)
			},
			broken: []brokenLine{{"acquire", "if g.token ~= '' and not mine and g.leaseGen >= generation then", "if false then"}},
		},
		{
			name: "a lease whose end has passed is no lease",
			run: func(w *world) {
				w.invalidates(Begin, NewToken()) // keeps the guard itself alive
				l := w.granted(NewToken())
				w.pass(testLease)
				w.want(!w.renews(l), "a lease that ran out was renewed")
				w.fills(l, "v0", Refused)
				next := w.granted(NewToken())
				w.want(next.Stamp != "", "the lease was not granted anew")
			},
			broken: []brokenLine{{"guard", "if g.leaseEnd <= now then endLease(g) end", ""}},
		},
		{
			name: "a renewed lease stands on",
			run: func(w *world) {
				l := w.granted(NewToken())
				for range 3 {
					w.pass(testLease / 2)
					w.want(w.renews(l), "the lease was lost")
				}
				a := w.acquire(NewToken())
				w.want(a.Verdict == Held, "got %v, want held", a.Verdict)
				w.fills(l, "v", Stored)
				w.want(!w.renews(l), "a lease that was given back was renewed")
			},
			broken: []brokenLine{
				{"renew", "g.leaseEnd = math.max(g.leaseEnd, ends)", ""},
				{"fill", "\nendLease(g)\n", "\n"},
			},
		},
		{
			name: "a revoked lease is not renewed",
			run: func(w *world) {
				token := NewToken()
				l := w.granted(token)
				w.invalidates(Once, "")
				w.want(!w.renews(l), "renewed after the revocation")
				w.pass(time.Millisecond)
				w.granted(token)
				w.want(!w.renews(l), "renewed by the stamp of an earlier grant")
			},
			broken: []brokenLine{
				{"renew", "if g.token ~= token or g.stamp ~= ARGV[5] then return { 0, now } end", ""},
				{"renew", " or g.stamp ~= ARGV[5] then", " then"},
			},
		},
		{
			name: "fill twice stores once",
			run: func(w *world) {
				l := w.granted(NewToken())
				one := w.fills(l, "v", Stored)
				value, _ := w.keys()
				before := w.rdb.Get(w.t.Context(), value).Val()
				w.pass(0)
				two := w.fills(l, "v", StoredEarlier)
				w.want(before == w.rdb.Get(w.t.Context(), value).Val(), "the repeat changed the value")
				w.want(near(time.Until(one.Hard), testHard) && near(time.Until(two.Hard), testHard), "hard ends in %v and %v, want %v", time.Until(one.Hard), time.Until(two.Hard), testHard)
				w.want(!one.Born.After(time.Now()) && !two.Born.After(time.Now()), "born in the future")
				w.invalidates(Once, "")
				w.fills(l, "v", Refused)
			},
			broken: []brokenLine{{"fill", "if e and string.sub(stored, 53, 68) == token then", "if false then"}},
		},
		{
			name: "release frees the key, twice is once",
			run: func(w *world) {
				l := w.granted(NewToken())
				w.releases(l, false)
				_, guard := w.keys()
				w.want(!w.exists(guard), "the guard stands although all it knew has passed")
				w.pass(time.Millisecond)
				next := w.granted(NewToken())
				w.releases(l, true)
				w.want(w.renews(next), "a repeated release took the next one's lease")
				// Without a stamp: of a token whose acquire was never answered.
				w.releases(Lease{ID: next.ID, Token: l.Token}, false)
				w.want(w.renews(next), "a release without a stamp took another token's lease")
				w.releases(Lease{ID: next.ID, Token: next.Token}, false)
				w.want(!w.renews(next), "a release without a stamp did not free the key")
			},
			broken: []brokenLine{
				{"release", "if g.token ~= ARGV[1] or ARGV[7] ~= '' and g.stamp ~= ARGV[7] then return { 0, now } end", ""},
				{"release", "if g.token ~= ARGV[1] or ARGV[7] ~= '' and", "if ARGV[7] ~= '' and"},
				{"release", "ARGV[7] ~= '' and ", ""},
				{"release", "\nendLease(g)\n", "\n"},
				{"guard", "if last <= now then", "if last <= now then last = now + 1000 end if false then"},
			},
		},
		{
			name: "a failing key rests from the second failure on",
			run: func(w *world) {
				_, guard := w.keys()
				for i, want := range []time.Duration{0, testBase, 2 * testBase, testMax, testMax} {
					w.releases(w.granted(NewToken()), true)
					a := w.acquire(NewToken())
					if want == 0 {
						w.want(a.Verdict == Granted, "after %d failures: got %v, want granted", i+1, a.Verdict)
						w.releases(a.Lease, false) // does not count
						continue
					}
					w.want(a.Verdict == BackOff && near(a.Left, want), "after %d failures: got %v for %v, want a rest of %v", i+1, a.Verdict, a.Left, want)
					w.pass(want)
				}
				w.fills(w.granted(NewToken()), "v", Stored)
				w.want(!w.exists(guard), "failures are remembered after a success")
			},
			broken: []brokenLine{
				{"release", "g.failEnd = g.backEnd + longest", ""},
				{"release", "if base > 0 then", "if true then"},
				{"fill", "g.backEnd, g.failEnd, g.fails = 0, 0, 0", ""},
				{"acquire", "if g.token == '' and g.backEnd > now then", "if false then"},
			},
		},
		{
			name: "an invalidation ends the rest of a failing key",
			run: func(w *world) {
				for range 2 {
					w.releases(w.granted(NewToken()), true)
				}
				w.invalidates(Once, "")
				w.granted(NewToken())
			},
			broken: []brokenLine{{"invalidate", "g.backEnd = 0\n", "\n"}},
		},
		{
			name: "stale comes along if it is wanted",
			run: func(w *world) {
				w.fills(w.granted(NewToken()), "v0", Stored)
				w.pass(testSoft)
				w.holds("v0")
				l := w.acquire(NewToken(), func(a *Ask) { a.WantStale = false })
				w.want(l.Verdict == Granted && w.Decode(l).Kind == Nothing, "got %v with %v, want granted with nothing", l.Verdict, w.Decode(l).Kind)
				held := w.acquire(NewToken())
				got := w.Decode(held)
				w.want(held.Verdict == Held && got.Kind == Value && got.Value == "v0" && got.Entry.Stale(time.Now()), "got %v with %v %q", held.Verdict, got.Kind, got.Value)
			},
			broken: []brokenLine{{"acquire", "local stale = ARGV[6] == '1' and", "local stale ="}},
		},
		{
			name: "a refresh replaces the copy it has seen and no later one",
			run: func(w *world) {
				w.fills(w.granted(NewToken()), "v0", Stored)
				seen := w.reads().Stored
				l := w.granted(NewToken(), instead(seen))
				w.pass(5 * time.Millisecond)
				w.fills(l, "v1", Stored)
				again := w.acquire(NewToken(), instead(seen-5))
				w.want(again.Verdict == Found && w.Decode(again).Value == "v1", "got %v %q, want v1 found", again.Verdict, w.Decode(again).Value)
			},
			broken: []brokenLine{
				{"acquire", " and e.stored > tonumber(ARGV[7]) then", " then"},
				{"acquire", " and e.stored > tonumber(ARGV[7]) then", " and ARGV[7] == '0' then"},
			},
		},
	}
}

func windowScenarios() []scenario {
	return []scenario{
		{
			// R6: 1 an invalidation; 2 a load is granted inside its window and reads a lagging replica; 3 the window ends; 4 fill.
			name: "R6 a fill from inside the window does not outlive it",
			run: func(w *world) {
				w.invalidates(Once, "")
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				got := w.fills(l, "lagging", Stored)
				w.want(near(time.Until(got.Hard), testWindow), "hard end in %v, want %v", time.Until(got.Hard), testWindow)
				e := w.reads().Entry
				w.want(near(time.Until(e.Soft), testWindow) && near(time.Until(e.Hard), testWindow), "read: soft in %v, hard in %v", time.Until(e.Soft), time.Until(e.Hard))
				value, _ := w.keys()
				w.want(near(w.rdb.PTTL(w.t.Context(), value).Val(), testWindow), "Redis keeps it for %v", w.rdb.PTTL(w.t.Context(), value).Val())
				w.pass(testWindow)
				w.holdsNot()
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"acquire", "g.cut = g.winEnd", "g.cut = 0"},
				{"fill", "if cut ~= 0 and cut < hard then hard = cut end", ""},
				{"invalidate", "g.winEnd = math.max(g.winEnd, now + window)", ""},
			},
		},
		{
			name: "R6 a fill whose window is over stores nothing",
			run: func(w *world) {
				w.invalidates(Once, "")
				l := w.granted(NewToken())
				w.pass(testWindow)
				got := w.fills(l, "lagging", WindowOver)
				w.want(got.Hard.IsZero(), "a value that was not stored has a hard end")
				w.holdsNot()
				w.want(!w.renews(l), "the lease was not given back")
			},
			broken: []brokenLine{
				{"fill", "if cut ~= 0 and cut <= now or", "if"},
				{"fill", "local cut = g.cut", "local cut = g.winEnd > now and g.winEnd or 0"}, // looked up at the fill
				{"acquire", "g.cut = g.winEnd", "g.cut = 0"},
			},
		},
		{
			name: "a window outlives the leases given back in it",
			run: func(w *world) {
				w.invalidates(Once, "")
				w.fills(w.granted(NewToken()), "v", Stored)
				value, _ := w.keys()
				require.NoError(w.t, w.rdb.Del(w.t.Context(), value).Err()) // evicted
				w.releases(w.granted(NewToken()), false)
				w.cut(w.granted(NewToken()), testWindow)
			},
			broken: []brokenLine{
				{"fill", "saveGuard(KEYS[2], g, window)", "redis.call('DEL', KEYS[2])"},
				{"release", "saveGuard(KEYS[1], g, tonumber(ARGV[4]))", "redis.call('DEL', KEYS[1])"},
			},
		},
		{
			name: "while a write is pending everything lives for a slice",
			run: func(w *world) {
				op := NewToken()
				w.fills(w.granted(NewToken()), "v0", Stored)
				w.invalidates(Begin, op)
				w.holdsNot()
				for range 5 {
					w.pass(testPend / 2)
					l := w.granted(NewToken())
					w.cut(l, testWindow)
					w.fills(l, "v0", Stored)
					w.pass(testWindow)
					w.holdsNot()
					w.renewsPending(op)
				}
				w.invalidates(End, op)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.pass(testWindow)
				w.fills(l, "v0", WindowOver)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"acquire", "g.cut = now + slice", "g.cut = 0"},
				{"invalidate", "pends(g, token, now + tonumber(ARGV[4]))", ""},
				{"invalidate", "then\n  pendsNoMore(g, token)", "then"},
				{"renew", "else\n  pends(g, token, ends)", "else"},
			},
		},
		{
			// The writer died. Its commit may come at the last moment of its pending state, and the replica lags.
			name: "a pending write runs out into a last window",
			run: func(w *world) {
				w.invalidates(Begin, NewToken())
				w.pass(testPend - time.Second)
				w.cut(w.granted(NewToken()), testWindow)
				w.pass(testLease) // that one is lost
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{{"acquire", "g.cut = now + slice", "g.cut = 0"}},
		},
		{
			name: "what is granted in the last window ends with it",
			run: func(w *world) {
				w.invalidates(Begin, NewToken())
				w.pass(testPend + time.Second)
				l := w.granted(NewToken())
				w.cut(l, testWindow-time.Second)
				w.pass(testWindow - time.Second)
				w.fills(l, "lagging", WindowOver)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"acquire", "g.cut = g.pendEnd + window", "g.cut = 0"},
				{"guard", "if g.pendEnd > 0 then last = math.max(last, g.pendEnd + window) end", "last = math.max(last, g.pendEnd)"},
			},
		},
		{
			name: "the end of one update ends its own pending state and no other's",
			run: func(w *world) {
				a, b := NewToken(), NewToken()
				w.invalidates(Begin, a)
				w.invalidates(Begin, b)
				w.invalidates(Begin, a) // a repeat
				w.renewsPending(a)
				w.invalidates(End, a)
				w.pass(2 * testWindow)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.invalidates(End, a) // a repeat: b goes on
				w.pass(2 * testWindow)
				l = w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.invalidates(End, b)
				l = w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"guard", "local rest = others(g, token)\n  if", "local rest = ''\n  if"},
				{"guard", "rest = rest .. token .. string.format('%013.0f', ends)", ""},
				{"guard", " and string.sub(owner, 1, 16) ~= token then", " and false then"},
				{"guard", " and string.sub(owner, 1, 16) ~= token then", " then"},
				{"guard", "rest, last = rest .. owner, math.max(last, ends)", "rest = rest .. owner"},
				{"guard", "\n  g.pendToken = rest\n", "\n"},
				{"guard", "if g.multi == 0 then g.pendEnd = last end", ""},
			},
		},
		{
			name: "what is left pending ends with the last of those that are left",
			run: func(w *world) {
				a, b, c := NewToken(), NewToken(), NewToken()
				w.invalidates(Begin, a)
				w.pass(testPend / 4)
				w.invalidates(Begin, b)
				w.pass(testPend / 4)
				w.invalidates(Begin, c)
				w.invalidates(End, c)
				w.pass(3*testPend/4 - time.Second) // a, whose process died, ran out, b did not
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.pass(2 * time.Second) // b's process died too
				l = w.granted(NewToken())
				w.cut(l, testWindow-time.Second)
				w.releases(l, false)
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"guard", "rest, last = rest .. owner, math.max(last, ends)", "rest, last = rest .. owner, g.pendEnd"},
				{"guard", "rest, last = rest .. owner, math.max(last, ends)", "rest, last = rest .. owner, last == 0 and ends or math.min(last, ends)"},
			},
		},
		{
			// Their last window is covered by the one that the end of b opens: they ran out before it.
			name: "updates whose process died make room when they ran out",
			run: func(w *world) {
				a, b := NewToken(), NewToken()
				for range 7 {
					w.invalidates(Begin, NewToken())
				}
				w.pass(testPend / 2)
				w.invalidates(Begin, a)
				w.pass(testPend / 2)
				w.invalidates(Begin, b)
				w.invalidates(End, a)
				w.invalidates(End, b)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"guard", "if ends > now and string.sub", "if string.sub"},
				{"invalidate", "g.winEnd = math.max(g.winEnd, now + window)", ""},
			},
		},
		{
			name: "eight updates at once end with the last",
			run: func(w *world) {
				var ops []Token
				for range 8 {
					ops = append(ops, NewToken())
					w.invalidates(Begin, ops[len(ops)-1])
				}
				for _, op := range ops {
					w.cut(w.granted(NewToken()), testWindow)
					w.pass(2 * testWindow)
					w.invalidates(End, op)
				}
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{{"guard", "local OWNER, OWNERS = 29, 8", "local OWNER, OWNERS = 29, 7"}},
		},
		{
			name: "of more than eight updates at once nobody knows which is done: they run out together",
			run: func(w *world) {
				var ops []Token
				for range 9 {
					ops = append(ops, NewToken())
					w.invalidates(Begin, ops[len(ops)-1])
				}
				for _, op := range ops[:8] {
					w.invalidates(End, op)
				}
				w.pass(2 * testWindow)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.invalidates(End, ops[8])
				w.pass(testPend - 2*testWindow - time.Second)
				l = w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.pass(2 * time.Second)
				w.invalidates(Begin, ops[0]) // in the last window, alone: it can end again
				w.invalidates(End, ops[0])
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"guard", "  else\n    g.multi = 1\n  end\n  g.pendToken", "  end\n  g.pendToken"},
				{"guard", "if g.multi == 0 then g.pendEnd = last end", "g.pendEnd = last"},
				{"guard", "if g.pendEnd <= now then g.pendToken, g.multi = '', 0 end", "if g.pendEnd > 0 then g.multi = 0 end"},
				{"guard", "if g.pendEnd <= now then g.pendToken, g.multi = '', 0 end", ""},
			},
		},
		{
			// A fleet of two releases: the older one notes a token without a moment, and its end is told by nothing that this one reads.
			name: "an update of an older release runs out",
			run: func(w *world) {
				older, b := NewToken(), NewToken()
				w.beganByAnOlderRelease(older)
				w.invalidates(Begin, b)
				w.invalidates(End, b)
				w.pass(2 * testWindow)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.pass(testPend)
				w.cut(w.granted(NewToken()), 0)

				w.beganByAnOlderRelease(older)
				w.pass(testPend + time.Second)
				w.invalidates(Begin, b) // in its last window
				w.invalidates(End, b)
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"guard", "if not ends then\n      g.multi = 1", "if not ends then"},
				{"guard", "if g.pendEnd <= now then g.pendToken, g.multi = '', 0 end", ""},
			},
		},
		{
			name: "the end of an update that was paused too long does not end the next one's",
			run: func(w *world) {
				a, b := NewToken(), NewToken()
				w.invalidates(Begin, a)
				w.pass(testPend)
				w.invalidates(Begin, b)
				w.invalidates(End, a)
				w.pass(2 * testWindow)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.invalidates(End, b) // and b, alone now, can end it
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{
				{"guard", " and string.sub(owner, 1, 16) ~= token then", " and false then"},
				{"guard", " and string.sub(owner, 1, 16) ~= token then", " then"},
			},
		},
		{
			// 1 a's renewal hangs; 2 a ends; 3 the renewal is carried out: a is pending again, and its process, which was not told, ends it again.
			name: "a renewal that comes after its end is ended by a second end",
			run: func(w *world) {
				a := NewToken()
				w.invalidates(Begin, a)
				w.invalidates(End, a)
				w.renewsPending(a)
				w.pass(2 * testWindow)
				l := w.granted(NewToken())
				w.cut(l, testWindow)
				w.releases(l, false)
				w.invalidates(End, a)
				w.pass(testWindow)
				w.cut(w.granted(NewToken()), 0)
			},
			broken: []brokenLine{{"guard", " and string.sub(owner, 1, 16) ~= token then", " then"}},
		},
		{
			name: "a renewal brings a pending write back whose guard was lost",
			run: func(w *world) {
				a, b := NewToken(), NewToken()
				w.invalidates(Begin, a)
				_, guard := w.keys()
				require.NoError(w.t, w.rdb.Del(w.t.Context(), guard).Err())
				w.renewsPending(a)
				w.cut(w.granted(NewToken()), testWindow)
				w.renewsPending(b) // another owner
				w.invalidates(End, a)
				w.pass(2 * testWindow)
				w.cut(w.granted(NewToken()), testWindow)
			},
			broken: []brokenLine{
				{"renew", "else\n  pends(g, token, ends)", "else\n  return { 0, now }"},
				{"guard", " and string.sub(owner, 1, 16) ~= token then", " and false then"},
			},
		},
	}
}
