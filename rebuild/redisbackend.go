package rebuild

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	defaultLockPrefix  = "tc-lock"
	defaultCallTimeout = time.Second // chosen; not tuned
	// leastBurn is how long, at least, an owner whose grant was not confirmed is refused: longer than a copy of a request can be under way.
	leastBurn = time.Minute
)

// The races of a lock in Redis, and the rule that closes each. A holds, B waits; each is a case of package backendtest or a test here.
//
//	L1   1 A and B see it free; 2 both are granted                              one script looks and grants
//	L2   1 B is refused; 2 A releases, nobody waits; 3 B is queued and sleeps   the script that refuses also queues
//	L3   1 A's lease ends, B is granted; 2 A releases B's                       only the owner releases; an owner is one call
//	L4   1 A's lease ends, B is granted; 2 A renews                             only owner and token together renew
//	L5   1 A's lease ends, nobody asks; 2 A was told so; 3 A renews             what is past is not revived
//	L6   1 A is granted, the answer is lost; 2 A repeats and is told "held"     the same owner gets the same grant, and what is left of it
//	L7   1 A asks, gives up, releases; 2 a copy of its acquire arrives          a burned owner is never granted
//	L8   1 data is lost; 2 B gets an older token than A had                     server time and floor; A's refused renewal drops B
//	L9   1 the key expires; 2 the count begins anew                             server time; the key outlives its token
//	L10  1 B is woken and leaves; 2 C is not woken                              every way out of every script wakes
//	L11  1 A's lease ends; 2 a script clears it, for another reason; 3 B sleeps the same
//	L12  1 B is woken and dies; 2 it is B's turn for ever                       nobody listens: the next at once; else its claim ends
//	L13  1 B is woken, C takes the name; 2 C releases; B "was woken"            woken is 0 again whenever a holder goes
//	L14  1 the clock goes back an hour; 2 a dead holder has it for an hour      no end is further ahead than the longest lease
//	L15  1 the subscription is lost; 2 B's event; 3 it is made again            Watch ends with the loss; ready comes before any look
//	L16  1 a permit's lease ends; 2 its late renewal drops all older permits    only a token that the record never knew drops any

// RedisBackendOptions are the options of NewRedisBackend. The zero value means the defaults.
type RedisBackendOptions struct {
	// Prefix begins every key and channel; "tc-lock"; no braces, spaces or control bytes. Backends of one prefix share their names, so all
	// that use one must ask for the same things: give a semaphore another prefix than a mutex.
	Prefix string
	// Replicas is how many replicas must confirm a grant (WAIT) before it counts; 0: none is asked. A failover can lose a grant all the
	// same: a replica that did not confirm may be promoted. Only on a *redis.Client or *redis.ClusterClient.
	Replicas int
	// CallTimeout is how long a call waits for its answer, if its context does not end before; at least 10 ms; 0: 1 s.
	CallTimeout time.Duration
}

// RedisBackend is the Backend on Redis, standalone, with Sentinel or in Cluster: one sorted set a name, one script a step, the server's
// time only. It is a Resizer, a Downgrader and a BatchRenewer too. All methods are safe for concurrent use.
//
// Each call is one round trip, shared with calls to the same master at about the same time; with Replicas, an Acquire waits for the
// replicas besides. Scripts are sent once: repeating is for the caller, whose time it is.
//
// What is held is lost when the server loses it: by a flush, an eviction (use noeviction), a restart without persistence, a failover
// before the replica had it. The holder is told at its next renewal; until then two may believe to hold the name, and only the
// resource, by comparing tokens, keeps them apart.
//
// A hung server holds at most two goroutines a master, and two more with Replicas, for as long as the client lets a call hang. Nothing else
// runs in the background; there is nothing to close.
type RedisBackend struct {
	rdb         redis.UniversalClient
	single      *redis.Client        // rdb, if it is one
	cluster     *redis.ClusterClient // rdb, if it is one
	prefix      string
	front       string // of the wake-up channels
	replicas    int
	callTimeout time.Duration

	mu    sync.Mutex
	lanes map[laneKey]*lane // those with something to send, or something under way

	// In a cluster: whether the client knows who has which slot; then routing waits for nobody.
	known    bool
	learning chan struct{} // closed when the asking that is under way has ended; nil: none is
	learnErr error         // of the last one
}

var (
	_ Backend      = (*RedisBackend)(nil)
	_ Resizer      = (*RedisBackend)(nil)
	_ Downgrader   = (*RedisBackend)(nil)
	_ BatchRenewer = (*RedisBackend)(nil)
)

// NewRedisBackend returns a backend on rdb, which stays the caller's: it is never closed here. No living server is needed.
//
// Errors, joined: a nil client, a Ring (its shards lose keys when one fails), replica routing (ReadOnly, RouteByLatency, RouteRandomly: the
// scripts write), options out of range.
func NewRedisBackend(rdb redis.UniversalClient, o RedisBackendOptions) (*RedisBackend, error) {
	const function = "rebuild: NewRedisBackend"
	b := &RedisBackend{rdb: rdb, prefix: o.Prefix, replicas: o.Replicas, callTimeout: o.CallTimeout, lanes: map[laneKey]*lane{}}
	errs := []error{borrowed.CheckClient(function, rdb), borrowed.CheckPrefix(function, o.Prefix)}
	switch c := rdb.(type) {
	case *redis.Client:
		b.single = c
	case *redis.ClusterClient:
		b.cluster = c
	default:
		if o.Replicas > 0 {
			errs = append(errs, fmt.Errorf("%s: Replicas need a *redis.Client or a *redis.ClusterClient, not a %T", function, rdb))
		}
	}
	if o.Replicas < 0 {
		errs = append(errs, fmt.Errorf("%s: Replicas is negative: %d", function, o.Replicas))
	}
	if o.CallTimeout != 0 && o.CallTimeout < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("%s: CallTimeout is %v: it must be at least 10ms, or 0 for the default", function, o.CallTimeout))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if b.prefix == "" {
		b.prefix = defaultLockPrefix
	}
	if b.callTimeout == 0 {
		b.callTimeout = defaultCallTimeout
	}
	b.front = b.prefix + ":wake:"
	return b, nil
}

// Acquire is Backend's. With Replicas, a grant that too few confirmed is given back, its owner burned, and the error is ErrReplicas; it says so
// if that failed or ctx ended first, and then a release is of use.
// A full Redis refuses it with its own error; renewals and releases go on.
func (b *RedisBackend) Acquire(ctx context.Context, c LockClaim) (LockGrant, error) {
	if err := checkClaim(c, 0); err != nil {
		return LockGrant{}, err
	}
	if c.Lease <= 0 {
		return LockGrant{}, fmt.Errorf("rebuild: a lease of %v: want at least a millisecond", c.Lease)
	}
	more := append(make([]any, 0, 3+len(c.Also)), wholeMillis(c.Lease), wholeMillis(c.Entry), c.Floor)
	for _, other := range c.Also {
		more = append(more, other)
	}
	call := b.call(lockAcquire, c, more...)
	acks := b.run(ctx, b.replicas > 0, call)
	r, err := call.read()
	if err != nil {
		return LockGrant{}, err
	}
	g := LockGrant{Floor: r.floor(), Processes: int(r.processes)}
	switch r.code {
	case 1:
		if acks < int64(b.replicas) {
			return g, b.takeBack(ctx, c, acks)
		}
		g.Token, g.Left = uint64(r.number), r.left()
		return g, nil
	case -1:
		return g, fmt.Errorf("rebuild: %s was released for good: %w", c.Owner, ErrLeaseLost)
	default:
		g.Retry, g.Gone = r.left(), r.more
		return g, ErrLocked
	}
}

// takeBack releases a grant that too few replicas confirmed. If that fails, or ctx ends first, its caller may release it, as after any error; else
// the lease ends by itself: nobody knows its token.
func (b *RedisBackend) takeBack(ctx context.Context, c LockClaim, acks int64) error {
	err := b.Release(ctx, c, 0, max(leastBurn, 2*c.Lease))
	if err != nil {
		return fmt.Errorf("%w: %d of %d, and giving it back failed: %v", ErrReplicas, acks, b.replicas, err) //nolint:errorlint // that it is unavailable must not look like a reason to repeat
	}
	return fmt.Errorf("%w: %d of %d", ErrReplicas, acks, b.replicas)
}

// Renew is Backend's.
func (b *RedisBackend) Renew(ctx context.Context, c LockClaim, token uint64) (LockGrant, error) {
	grants, errs := b.RenewAll(ctx, []LockClaim{c}, []uint64{token})
	return grants[0], errs[0]
}

// RenewAll is BatchRenewer's: one pipeline a master.
func (b *RedisBackend) RenewAll(ctx context.Context, claims []LockClaim, tokens []uint64) ([]LockGrant, []error) {
	grants, errs := make([]LockGrant, len(claims)), make([]error, len(claims))
	calls, of := make([]*lockCall, 0, len(claims)), make([]int, 0, len(claims))
	for i, c := range claims {
		if errs[i] = checkClaim(c, tokens[i]); errs[i] == nil && (c.Lease <= 0 || tokens[i] == 0) {
			errs[i] = fmt.Errorf("rebuild: a renewal of token %d for %v: want a token and at least a millisecond", tokens[i], c.Lease)
		}
		if errs[i] == nil {
			calls, of = append(calls, b.call(lockRenew, c, tokens[i], wholeMillis(c.Lease))), append(of, i)
		}
	}
	b.run(ctx, false, calls...)
	for n, call := range calls {
		i := of[n]
		r, err := call.read()
		switch {
		case err != nil:
			errs[i] = err
		case r.code == 1:
			grants[i] = LockGrant{Token: tokens[i], Left: r.left(), Floor: r.floor()}
		default:
			grants[i], errs[i] = LockGrant{Floor: r.floor()}, ErrLeaseLost
		}
	}
	return grants, errs
}

// Release is Backend's.
func (b *RedisBackend) Release(ctx context.Context, c LockClaim, token uint64, burn time.Duration) error {
	if err := checkClaim(c, token); err != nil {
		return err
	}
	call := b.call(lockRelease, c, token, wholeMillis(burn))
	b.run(ctx, false, call)
	r, err := call.read()
	if err == nil && r.code != 1 {
		err = ErrLeaseLost
	}
	return err
}

// Resize is Resizer's. A full Redis refuses it.
func (b *RedisBackend) Resize(ctx context.Context, name string, limit int) error {
	if limit < 0 || len(name) > maxNameBytes {
		return fmt.Errorf("rebuild: a limit of %d for a name of %d bytes: want at least 0, and at most %d bytes", limit, len(name), maxNameBytes)
	}
	call := b.call(lockResize, LockClaim{Name: name, Limit: limit, Ordered: true}, limit)
	b.run(ctx, false, call)
	_, err := call.read()
	return err
}

// Downgrade is Downgrader's.
func (b *RedisBackend) Downgrade(ctx context.Context, c LockClaim, token uint64, owner string) (LockGrant, error) {
	if err := checkClaim(c, token); err != nil {
		return LockGrant{}, err
	}
	if c.Owner[0] != 'x' || !ownerForm.MatchString(owner) || owner[0] != 's' || token == 0 || c.Lease <= 0 {
		return LockGrant{}, fmt.Errorf("rebuild: a downgrade of %q, token %d, to %q for %v: want an exclusive owner, its token, a shared one and a lease",
			c.Owner, token, owner, c.Lease)
	}
	call := b.call(lockDowngrade, c, token, wholeMillis(c.Lease), c.Floor, owner)
	b.run(ctx, false, call)
	r, err := call.read()
	switch {
	case err != nil:
		return LockGrant{}, err
	case r.code == 1:
		return LockGrant{Token: uint64(r.number), Left: r.left(), Floor: r.floor()}, nil
	default:
		return LockGrant{Floor: r.floor()}, ErrLeaseLost
	}
}
