package rebuild

import (
	_ "embed"
	"fmt"
	"regexp"
	"time"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/rediskey"
)

// The scripts of the locks. Each is lua/lock_head.lua, which knows the form of a name's sorted set, followed by its own file.
var (
	//go:embed lua/lock_head.lua
	lockHeadSource string
	//go:embed lua/lock_acquire.lua
	lockAcquireSource string
	//go:embed lua/lock_renew.lua
	lockRenewSource string
	//go:embed lua/lock_release.lua
	lockReleaseSource string
	//go:embed lua/lock_resize.lua
	lockResizeSource string
	//go:embed lua/lock_downgrade.lua
	lockDowngradeSource string

	lockAcquire   = borrowed.NewScript("acquire", lockHeadSource+lockAcquireSource)
	lockRenew     = borrowed.NewScript("renew", lockHeadSource+lockRenewSource)
	lockRelease   = borrowed.NewScript("release", lockHeadSource+lockReleaseSource)
	lockResize    = borrowed.NewScript("resize", lockHeadSource+lockResizeSource)
	lockDowngrade = borrowed.NewScript("downgrade", lockHeadSource+lockDowngradeSource)
)

const (
	maxNameBytes = 8 << 10 // of a lock's name; chosen; not tuned
	// maxToken is the highest number that the scripts' arithmetic has exactly (2^53, IEEE 754), less room to count.
	maxToken = 1<<53 - 1<<20
)

var (
	ownerForm   = regexp.MustCompile(`^[xs]\.[A-Za-z0-9_-]{1,64}\.[0-9a-f]{16}$`)
	processForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// checkClaim says what is wrong with a claim and a token to a backend on Redis: mistakes of the caller, of which repeating heals none.
func checkClaim(c LockClaim, token uint64) error {
	switch {
	case len(c.Name) > maxNameBytes:
		return fmt.Errorf("rebuild: a lock's name of %d bytes, at most %d", len(c.Name), maxNameBytes)
	case !ownerForm.MatchString(c.Owner):
		return fmt.Errorf("rebuild: %q is no owner: want x or s, the process, 16 hexadecimal digits, with dots between", c.Owner)
	case c.Limit < 0:
		return fmt.Errorf("rebuild: a limit of %d", c.Limit)
	case c.Lease < 0 || c.Entry < 0:
		return fmt.Errorf("rebuild: a lease of %v and an entry of %v: neither is to be negative", c.Lease, c.Entry)
	case token > maxToken || c.Floor > maxToken:
		return fmt.Errorf("rebuild: token %d or floor %d is beyond %d: it is none that this backend gave", token, c.Floor, uint64(maxToken))
	}
	for _, other := range c.Also {
		if !ownerForm.MatchString(other) {
			return fmt.Errorf("rebuild: %q is no owner", other)
		}
	}
	return nil
}

// lockCall is one script to run on one name.
type lockCall struct {
	script *borrowed.Script
	keys   []string // one
	args   []any

	reply any
	err   error
}

// call makes a call of script for c; more are the arguments of its own.
func (b *RedisBackend) call(script *borrowed.Script, c LockClaim, more ...any) *lockCall {
	args := append(make([]any, 0, 6+len(more)+len(c.Also)), c.Name, b.front, flag(b.single != nil), flag(c.Ordered), c.Limit, c.Owner)
	return &lockCall{script: script, keys: []string{b.key(c.Name)}, args: append(args, more...)}
}

// key returns the key of a name: <prefix>:{<name>}.
func (b *RedisBackend) key(name string) string { return b.prefix + ":{" + rediskey.Tag(name) + "}" }

func flag(is bool) int {
	if is {
		return 1
	}
	return 0
}

// lockReply is what the scripts answer: see lua/lock_head.lua.
type lockReply struct {
	code      int64
	micros    int64 // server time
	rest      int64 // ms
	number    int64 // a token, or the highest one known
	processes int64
	more      []string
}

// read returns the answer of c, or why there is none.
func (c *lockCall) read() (r lockReply, err error) {
	if c.err != nil {
		return r, c.err
	}
	fields, _ := c.reply.([]any)
	for i, f := range fields {
		switch n, is := f.(int64); {
		case i < 5 && is:
			*[]*int64{&r.code, &r.micros, &r.rest, &r.number, &r.processes}[i] = n
		case i >= 5 && !is:
			s, _ := f.(string)
			r.more = append(r.more, s)
		default:
			return lockReply{}, fmt.Errorf("rebuild: the script %s answered %v", c.script.Name, c.reply)
		}
	}
	if len(fields) < 5 {
		return lockReply{}, fmt.Errorf("rebuild: the script %s answered %v", c.script.Name, c.reply)
	}
	return r, nil
}

// floor is the newest token or server microsecond of the answer.
func (r lockReply) floor() uint64 { return uint64(max(r.micros, r.number, 0)) }

// left is the rest as a time.
func (r lockReply) left() time.Duration { return time.Duration(r.rest) * time.Millisecond }

// wholeMillis is d as a script takes it: whole milliseconds, and a positive time is at least one.
func wholeMillis(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return max(d.Milliseconds(), 1)
}
