package rebuild_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/rebuild"
	"github.com/tiercache/tiercache/rebuild/backendtest"
)

// patience is how long a test waits for what must come; reached only by a failure.
const patience = 20 * time.Second

// openBackend returns a backend with a prefix of the test's own and calls that wait so long that no test meets it by being slow.
func openBackend(t *testing.T, rdb redis.UniversalClient, set ...func(*rebuild.RedisBackendOptions)) *rebuild.RedisBackend {
	t.Helper()
	o := rebuild.RedisBackendOptions{Prefix: redistest.Name(t), CallTimeout: patience}
	for _, f := range set {
		f(&o)
	}
	b, err := rebuild.NewRedisBackend(rdb, o)
	require.NoError(t, err)
	t.Cleanup(func() { // what sends ends with what it sends
		require.Eventually(t, func() bool { senders, _, _ := b.Sending(); return senders == 0 }, patience, time.Millisecond)
	})
	return b
}

func prefix(p string) func(*rebuild.RedisBackendOptions) {
	return func(o *rebuild.RedisBackendOptions) { o.Prefix = p }
}

// subject is two backends with clients of their own on the servers at nodes, which are the test's own.
func subject(t *testing.T, nodes []*redistest.Server, client func(testing.TB) redis.UniversalClient) backendtest.Subject {
	t.Helper()
	p := redistest.Name(t)
	one, two := openBackend(t, client(t), prefix(p)), openBackend(t, client(t), prefix(p))
	each := func(f func(*redis.Client) error) {
		for _, n := range nodes {
			require.NoError(t, f(n.Client(t)))
		}
	}
	return backendtest.Subject{
		Backend: one, Other: two,
		Forget: func() { each(func(c *redis.Client) error { return c.FlushAll(t.Context()).Err() }) },
		Deafen: func() {
			each(func(c *redis.Client) error { return c.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err() })
		},
		Pause: func() func() {
			for _, n := range nodes {
				n.Stop()
			}
			return func() {
				for _, n := range nodes {
					n.Continue()
				}
			}
		},
		Leftover: func(string) (found string) {
			each(func(c *redis.Client) error {
				found += strings.Join(lasting(t, c, p), " ")
				return nil
			})
			return found
		},
	}
}

// lasting returns the keys under a prefix that have no expiry.
func lasting(t *testing.T, c *redis.Client, prefix string) (found []string) {
	t.Helper()
	keys, err := c.Keys(t.Context(), prefix+"*").Result()
	require.NoError(t, err)
	for _, key := range keys {
		left, err := c.PTTL(t.Context(), key).Result()
		require.NoError(t, err)
		if left == -1 {
			found = append(found, key)
		}
	}
	return found
}

// Property: a backend on a standalone Redis is one. Broken by: see TestConformanceNoticesABrokenScript.
func TestRedisBackendConforms(t *testing.T) {
	server := redistest.Start(t)
	backendtest.Run(t, func(t *testing.T) backendtest.Subject {
		t.Helper()
		return subject(t, []*redistest.Server{server}, func(tb testing.TB) redis.UniversalClient { tb.Helper(); return server.Client(tb) })
	})
}

// Property: a backend on a Redis Cluster is one: a name is one slot, and a wake-up reaches every master's subscribers.
// Broken by: lock_head.lua, `wake()` in finish.
func TestRedisBackendConformsInCluster(t *testing.T) {
	cluster := redistest.StartCluster(t)
	backendtest.Run(t, func(t *testing.T) backendtest.Subject {
		t.Helper()
		return subject(t, cluster.Nodes, func(tb testing.TB) redis.UniversalClient { tb.Helper(); return cluster.Client(tb) })
	})
}

// brokenScript is one line of the scripts with something else in its place, and the case that notices.
type brokenScript struct{ property, script, line, instead string }

var brokenScripts = []brokenScript{
	{"one exclusive holder, nobody beside it", "acquire", "free = held == 0 and sharedAhead + exclusiveAhead == 0", "free = true"},
	{"one exclusive holder, nobody beside it", "acquire", "free = not exclusive and", "free ="},
	{"of many who ask at once one is granted", "acquire", "free = held == 0 and sharedAhead + exclusiveAhead == 0", "free = true"},
	{"two owners of one process are two", "acquire", "local standing = score('h:' .. owner)", "local standing = score('h:' .. owner) or latest(HELD) > 0 and HELD + latest(HELD) or nil"},
	{"a repeated acquire gets the same grant", "acquire", "local standing = score('h:' .. owner)", "local standing = nil"},
	{"a repeated acquire gets the same grant", "acquire", "if place then\n    add", "if false then\n    add"},
	{"repeated renewals and releases do no harm", "release", "elseif record.last == owner then", "elseif false then"},
	{"a late copy of an acquire is refused to a burned owner", "acquire", "if score('b:' .. owner) then", "if false then"},
	{"a late copy of an acquire is refused to a burned owner", "release", "if burn > 0 then", "if burn > 0 and standing then"},
	{"a late copy of an acquire is at worst a lease nobody holds", "acquire", "local lease, entry, floor = tonumber(ARGV[7])", "local lease, entry, floor = tonumber(ARGV[7]) + 1e9"},
	{"tokens grow over releases", "head", "math.max(record.hw + 1, micros, floor + 1)", "math.max(record.hw, floor + 1)"},
	{"tokens grow over expiries", "head", "math.max(record.hw + 1, micros, floor + 1)", "math.max(record.hw, floor + 1)"},
	{"tokens are above what the asker has seen", "head", "micros, floor + 1)", "micros)"},
	{"tokens are above what the asker has seen", "head", "math.max(record.hw + 1, micros, floor + 1)", "math.max(micros, floor + 1)"},
	{"a stranger renews nothing", "renew", " and score('t:' .. owner) == token then", " then"},
	{"a stranger releases nothing", "release", "refuse(token)\nend", "record.hw = 0\n  refuse(token + 1)\nend"},
	{"who was late harms no successor", "head", "if token <= record.hw then return end", ""},
	{"a past lease is not revived", "renew", "standing - HELD > now and", ""},
	{"nobody else is granted before Left is over", "acquire", "return finish({ 1, micros, lease, record.hw", "return finish({ 1, micros, lease + 5000, record.hw"},
	{"nobody else is granted before the Left of a repeat is over", "acquire", "add(int(HELD + last), 'h:' .. owner)", ""},
	{"nobody else is granted before the Left of a renewal is over", "renew", "redis.call('ZADD', key, int(HELD + last), 'h:' .. owner)", ""},
	{"a limit lets so many in", "head", "(record.limit > 0 and record.limit or limit) - held", "limit"},
	{"a changed limit lets more in and revokes nobody", "head", "(record.limit > 0 and record.limit or limit)", "limit"},
	{"a downgrade has no gap", "downgrade", "grant(heir, lease, floor)", ""},
	{"a downgrade has no gap", "downgrade", "write('ZREM', key, 'h:' .. owner, 't:' .. owner)", ""},
	{"a repeated downgrade gets the same grant", "downgrade", "if standing then return", "if false then return"},
	{"nothing is left behind", "head", "if wrote then expire() end", ""},
	{"nothing is left behind", "head", "if wrote then expire() end", "if stored == nil then expire() end"},
	{"a release wakes who waits", "head", "  wake()\n  save()", "  save()"},
	{"who was woken and came too late is woken again", "release", "if standing then record.woken = 0 end", ""},
	{"who was woken and came too late is woken again", "head", "if sweepClass(HELD, 't', record.span) > 0 then record.woken = 0 end", "sweepClass(HELD, 't', record.span)"},
	{"a leaving passes the wake-up on", "release", "return finish({ code", "if code == 0 then save() expire() return { 0, micros, 0, 0, 0 } end\nreturn finish({ code"},
	{"an end that somebody meets wakes who waits", "renew", "return finish({ 0, micros, 0, record.hw, 0 })", "save() expire() return { 0, micros, 0, 0, 0 }"},
	{"a limit that grows wakes who waits", "resize", "return finish({ 1,", "do return { 1, micros, 0, 0, 0 } end return finish({ 1,"},
	{"a downgrade wakes those who read", "downgrade", "return finish({ 1, micros, lease,", "save() expire() do return { 1, micros, lease, record.hw, 0 } end return finish({ 1, micros, lease,"},
	{"readers are woken together, up to the next writer", "head", "return fit, line(", "return 1, line("},
	{"readers are woken together, up to the next writer", "head", "local stop = '(' .. int(math.min(x, EXCLUSIVE))", "local stop = '1'"},
	{"a place that is not asked for ends", "head", "sweepClass(QUEUED, 'q', record.span)", ""},
	{"who is woken and does not answer is passed", "head", "add(int(QUEUED + now + CLAIM), 'x:' .. who)", ""},
	{"grants come in the order of arrival", "acquire", "free = held == 0 and sharedAhead + exclusiveAhead == 0", "free = held == 0"},
	{"who tries passes nobody that waits", "acquire", "arrival and arrival + EXCLUSIVE or ARRIVALS", "arrival and arrival + EXCLUSIVE or EXCLUSIVE"},
	{"a newcomer takes a free name where order does not count", "acquire", "if ordered then", "if true then"},
	{"a reader does not pass a writer that waits", "acquire", "exclusiveAhead == 0 and room", "room"},
	{"a place is kept alive by another owner of its process", "acquire", "add(last, 'x:' .. ARGV[i])", ""},
	{"a place is kept alive by another owner of its process", "acquire", "gone[#gone + 1] = ARGV[i]", ""},
	{"tokens grow over a loss of all data", "head", "math.max(record.hw + 1, micros, floor + 1)", "math.max(record.hw + 1, floor + 1)"},
	{"tokens grow over a loss of all data", "head", "math.max(record.hw + 1, micros, floor + 1)", "math.max(record.hw + 1, micros)"},
	{"a holder from before a loss is told, and drops one with an older token", "head", "if token <= record.hw then return end", "if true then return end"},
}

// Property: the conformance suite fails where a rule of the scripts is missing: each rule has a case that needs it.
// Broken by: each line here; a case that passes with its line broken fails this test.
func TestConformanceNoticesABrokenScript(t *testing.T) {
	server := redistest.Start(t)
	cases := backendtest.Cases()
	for i, b := range brokenScripts {
		t.Run(fmt.Sprintf("%02d %s", i, b.property), func(t *testing.T) {
			at := slices.IndexFunc(cases, func(c backendtest.Case) bool { return c.Name == b.property })
			require.GreaterOrEqual(t, at, 0, "there is no case of that name")
			rebuild.BreakLockScript(t, b.script, b.line, b.instead)
			s := subject(t, []*redistest.Server{server}, func(tb testing.TB) redis.UniversalClient { tb.Helper(); return server.Client(tb) })
			s.Patience = 3 * time.Second // what does not come is what is wanted here
			wrong := cases[at].Broken(t, s)
			require.NotEmpty(t, wrong, "nothing went wrong with %q in the place of %q", b.instead, b.line)
			require.NotContains(t, wrong, "user_script", "the broken script does not run")
		})
	}
}
